"""The bundled real embeddings: WordNet glosses under MiniLM and WordLlama. See ``data/bundled/README.md``."""

import dataclasses
from importlib import resources

import numpy as np
from safetensors import safe_open


@dataclasses.dataclass(frozen=True)
class DemoData:
    """The bundled set, split so that ``x`` and ``y`` have no text in common. All float32, raw.

    Attributes:
        x: ``[6000, 384]``, MiniLM; the source's fitting rows.
        y: ``[6000, 256]``, WordLlama, of other texts; the target's fitting rows.
        y_true: ``[6000, 256]``, WordLlama of the texts of ``x``; for the oracle only.
        x_eval: ``[2000, 384]``, held-out texts.
        y_eval: ``[2000, 256]``, the same texts, row i with row i.
    """

    x: np.ndarray
    y: np.ndarray
    y_true: np.ndarray
    x_eval: np.ndarray
    y_eval: np.ndarray


def load_encoder(name: str) -> tuple[np.ndarray, int]:
    """All rows of ``minilm`` or ``wordllama``, float32, and how many of the last ones judge."""
    with (
        resources.as_file(resources.files("mv2v_jax") / "data" / "bundled" / "wordnet14k.safetensors") as path,
        safe_open(path, framework="numpy") as file,
    ):
        rows = file.get_tensor(name) * file.get_tensor(f"{name}_scale")[:, None]
        return rows, int(file.metadata()["num_eval"])


def load_demo_data() -> DemoData:
    """The bundled set under its protocol: the last rows judge, X is the first half of the others, Y the second."""
    source, num_eval = load_encoder("minilm")
    target, _ = load_encoder("wordllama")
    num_fit = len(source) - num_eval
    half = num_fit // 2
    return DemoData(
        x=source[:half],
        y=target[half:num_fit],
        y_true=target[:half],
        x_eval=source[num_fit:],
        y_eval=target[num_fit:],
    )
