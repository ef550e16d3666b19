"""The demo data: WordNet glosses under MiniLM and WordLlama, a distribution of its own. See ``demo_data/README.md``."""

import contextlib
import dataclasses
import gzip
import json
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from mv2v_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class DemoData:
    """The bundled data, split so that ``x`` and ``y`` have no text in common. All arrays are raw rows in float32.

    Attributes:
        x: ``[6000, d_x]``, fitting rows of the source. MiniLM has 384 dimensions, WordLlama 256.
        y: ``[6000, d_y]``, fitting rows of the target, of other texts.
        y_true: ``[6000, d_y]``, rows of the target of the texts of ``x``; for the oracle only.
        x_eval: ``[2000, d_x]``, rows of the source of held-out texts.
        y_eval: ``[2000, d_y]``, rows of the target of the same held-out texts in the same order.
    """

    x: np.ndarray
    y: np.ndarray
    y_true: np.ndarray
    x_eval: np.ndarray
    y_eval: np.ndarray


@dataclasses.dataclass(frozen=True)
class DemoTexts:
    """The texts of the rows of `DemoData`, in their order.

    Attributes:
        x: those of ``x``.
        y: those of ``y``.
        evaluated: those of ``x_eval`` and ``y_eval``.
    """

    x: list[str]
    y: list[str]
    evaluated: list[str]


def load_demo_texts() -> DemoTexts:
    """Load the texts of the bundled data.

    Example:
        >>> load_demo_texts().x[0]
        'somatosensory: of or relating to the somatosenses'
    """
    texts = json.loads(gzip.decompress((_find_folder() / "wordnet14k.texts.json.gz").read_bytes()))
    with _open_bundled() as file:
        num_fit = len(texts) - int(file.metadata()["num_eval"])
    return DemoTexts(x=texts[: num_fit // 2], y=texts[num_fit // 2 : num_fit], evaluated=texts[num_fit:])


def _find_folder() -> Traversable:
    """The folder of the data: of the installed package ``mv2v_jax_demo``, or of the clone that this file is in."""
    try:
        return resources.files("mv2v_jax_demo")
    except ModuleNotFoundError:
        clone = Path(__file__).parents[2] / "demo_data" / "mv2v_jax_demo"
    if not clone.is_dir():
        raise InputError(
            "the demo data is a package of its own, found it missing; install it: pip install mv2v_jax_demo, or "
            "./demo_data from a clone"
        )
    return clone


@contextlib.contextmanager
def _open_bundled() -> Iterator[Any]:
    with (
        resources.as_file(_find_folder() / "wordnet14k.safetensors") as path,
        safe_open(path, framework="numpy") as file,
    ):
        yield file


def load_encoder(name: str) -> tuple[np.ndarray, int]:
    """All rows of one encoder, ``minilm`` or ``wordllama``.

    Returns:
        Rows ``[14000, d]`` in float32, and the number of rows at the end that are kept for evaluation.
    """
    with _open_bundled() as file:
        rows = file.get_tensor(name) * file.get_tensor(f"{name}_scale")[:, None]
        return rows, int(file.metadata()["num_eval"])


def load_demo_data(source: str = "minilm", target: str = "wordllama") -> DemoData:
    """Load the bundled data, split for a fit without pairs.

    The last rows are for evaluation. X is the first half of the others, Y the second half.

    Args:
        source: encoder of X, ``minilm`` or ``wordllama``.
        target: encoder of Y, likewise.

    Example:
        >>> data = load_demo_data()
        >>> data.x.shape, data.y.shape, data.x_eval.shape
        ((6000, 384), (6000, 256), (2000, 384))
    """
    rows_x, num_eval = load_encoder(source)
    rows_y, _ = load_encoder(target)
    num_fit = len(rows_x) - num_eval
    half = num_fit // 2
    return DemoData(
        x=rows_x[:half],
        y=rows_y[half:num_fit],
        y_true=rows_y[:half],
        x_eval=rows_x[num_fit:],
        y_eval=rows_y[num_fit:],
    )
