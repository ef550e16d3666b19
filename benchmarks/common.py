"""What the benchmarks share: data, the protocol, timing, tables and a description of the machine."""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.linalg  # noqa: F401  JAX calls SciPy's LAPACK, whose threads can only be limited once it is loaded
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from mv2v_jax import LinearMap
from mv2v_jax.config import PRESETS
from mv2v_jax.data.demo import load_encoder
from mv2v_jax.evaluation import metrics

BUNDLED_ENCODERS = ("minilm", "wordllama")
# Numbers of rows.
Rows = slice | np.ndarray
METRICS = ("top1", "top5", "top10", "mean_rank", "mrr", "foscttm", "cosine")


# ---------------------------------------------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows of one pair of encoders, split by the protocol. All raw.

    Attributes:
        x: ``[n // 2, d_x]``, fitting rows of the source.
        y: ``[n - n // 2, d_y]``, fitting rows of the target, of other texts.
        y_true: ``[n // 2, d_y]``, target rows of the texts of ``x``; only the oracle sees them.
        x_eval: ``[e, d_x]``, held-out rows.
        y_eval: ``[e, d_y]``, their true partners, row i with row i.
    """

    x: np.ndarray
    y: np.ndarray
    y_true: np.ndarray
    x_eval: np.ndarray
    y_eval: np.ndarray


def split_rows(source: np.ndarray, target: np.ndarray, num_eval: int) -> Split:
    """The protocol: the last ``num_eval`` rows evaluate; the first half of the others is X, the second half Y."""
    n = source.shape[0] - num_eval
    if num_eval < 1 or n < 2 or source.shape[0] != target.shape[0]:
        raise SystemExit(f"cannot evaluate on {num_eval} of {source.shape[0]} source and {target.shape[0]} target rows")
    return pick_rows(source, target, slice(n // 2), slice(n // 2, n), slice(n, None))


def pick_rows(source: np.ndarray, target: np.ndarray, x: Rows, y: Rows, evaluation: Rows) -> Split:
    """Rows ``x`` of the source, rows ``y`` of the target and the rows to evaluate on, by their numbers in the files."""
    return Split(x=source[x], y=target[y], y_true=target[x], x_eval=source[evaluation], y_eval=target[evaluation])


def to_float32(split: Split) -> Split:
    """The same rows in memory, in float32."""
    fields = [field.name for field in dataclasses.fields(split)]
    return Split(**{name: np.asarray(getattr(split, name), dtype=np.float32) for name in fields})


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of a script, line by line."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose the rows and the encoders to align."""
    add_folder_option(parser)
    parser.add_argument("--rows", type=int, help="number of rows to use, from the first one on (default: all)")
    parser.add_argument(
        "--eval", type=int, help="number of rows to evaluate on (default: 8,192 of --data, 2,000 of the bundled rows)"
    )
    parser.add_argument("--source", default="minilm", help="source encoder: minilm, wordllama or lsa (default: minilm)")
    parser.add_argument("--target", default="wordllama", help="target encoder (default: wordllama)")
    add_json_option(parser)


def add_folder_option(parser: argparse.ArgumentParser) -> None:
    """The option that names a folder of embeddings."""
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="folder with wordnet.ENCODER.npy files (default: the bundled rows)"
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """The option that keeps the figures."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="file that all figures are also written to, as JSON")


def add_seed_option(parser: argparse.ArgumentParser) -> None:
    """The option that sets the random seed of every method."""
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")


def add_repeats_option(parser: argparse.ArgumentParser) -> None:
    """The option that sets how often steady times are measured."""
    parser.add_argument("--repeats", type=int, default=3, help="timed calls; their median is shown (default: 3)")


def add_preset_option(parser: argparse.ArgumentParser, default: list[str]) -> None:
    """The option that chooses the presets to measure."""
    parser.add_argument(
        "--presets",
        type=read_names("presets", PRESETS),
        default=default,
        metavar="NAME,...",
        help=f"presets to measure, of {', '.join(PRESETS)} (default: {','.join(default)})",
    )


def read_names(kind: str, known: Collection[str]) -> Callable[[str], list[str]]:
    """A parser of options such as ``fast,default`` that accepts the ``known`` names; ``kind`` is their plural."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{kind} are {', '.join(known)}, found {', '.join(sorted(unknown))}")
        return names

    return read


def read_counts(text: str) -> list[int]:
    """Whole numbers from an option such as ``1000,3000``."""
    try:
        counts = [int(count) for count in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"must be whole numbers above 0, separated by commas, found {text!r}")
    return counts


def check_folder(folder: Path | None) -> Path | None:
    """The folder that ``--data`` names; ``None`` stands for the bundled rows."""
    if folder is not None and not folder.is_dir():
        raise SystemExit(f"--data: no such folder: {folder}")
    return folder


def read_rows(folder: Path | None, name: str) -> tuple[np.ndarray, int]:
    """All rows of one encoder, and the default number of evaluation rows."""
    if folder is None:
        if name not in BUNDLED_ENCODERS:
            raise SystemExit(f"the bundled encoders are {' and '.join(BUNDLED_ENCODERS)}, found {name}")
        return load_encoder(name)
    try:
        return read_file(folder, f"wordnet.{name}"), 8_192
    except FileNotFoundError as error:
        raise SystemExit(f"--data: {error}") from error


def read_file(folder: Path, name: str) -> np.ndarray:
    """A memory map of ``NAME.npy``, rows ``[n, d]``."""
    path = folder / f"{name}.npy"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {path.name}")
    return np.load(path, mmap_mode="r")


def load_split(options: argparse.Namespace) -> tuple[Split, dict[str, Any]]:
    """The rows that the options of `add_data_options` choose, and a record of the choice, which is also printed."""
    folder = check_folder(options.data)
    source, num_eval = read_rows(folder, options.source)
    target, _ = read_rows(folder, options.target)
    rows = min(options.rows or source.shape[0], source.shape[0])
    if options.eval is not None:
        num_eval = options.eval
    elif rows < source.shape[0]:
        # The default for all rows could be more than the rows that are used, so the proportion is kept.
        num_eval = max(1, rows * num_eval // source.shape[0])
    split = to_float32(split_rows(np.asarray(source[:rows]), np.asarray(target[:rows]), num_eval))
    kind = "bundled" if folder is None else "given"
    print(
        f"data: {kind}{'' if folder is None else f' ({folder})'}, {options.source} to {options.target}, "
        f"n {split.x.shape[0]:,}, m {split.y.shape[0]:,}, evaluated on {num_eval:,}",
        flush=True,
    )
    record = {"data": kind, "source": options.source, "target": options.target, "rows": rows, "eval": num_eval}
    return split, record


def evaluate(linear_map: LinearMap, split: Split) -> dict[str, float]:
    """Scores of a map on the evaluation rows, as plain numbers."""
    scores = metrics.evaluate(linear_map, jax.numpy.asarray(split.x_eval), jax.numpy.asarray(split.y_eval))
    return {name: float(getattr(scores, name)) for name in METRICS}


def evaluate_oracle(split: Split) -> dict[str, float]:
    """Scores of the best orthogonal map, fitted on true pairs."""
    return evaluate(metrics.oracle(split.x, split.y_true, split.y), split)


# -------------------------------------------------------------------------------------------------------------- timing


def seconds_of(fun: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The result of one call of JAX functions, once it is ready, and the seconds it took.

    LAPACK gets one thread, as under ``OPENBLAS_NUM_THREADS=1`` and on the command line.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        start = time.perf_counter()
        result = jax.block_until_ready(fun(*args))
        return result, time.perf_counter() - start


def compile_seconds(fun: Callable[..., Any], *args: Any) -> tuple[jax.stages.Compiled, float]:
    """``fun`` compiled for these arguments, and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    compiled = jax.jit(fun).lower(*args).compile()
    return compiled, time.perf_counter() - start


def steady_seconds(fun: Callable[..., Any], *args: Any, repeats: int = 3) -> tuple[Any, float]:
    """The result, and the median seconds of ``repeats`` calls after one that warms up."""
    seconds_of(fun, *args)
    runs = [seconds_of(fun, *args) for _ in range(repeats)]
    return runs[-1][0], statistics.median(seconds for _, seconds in runs)


# ------------------------------------------------------------------------------------------------------------ printing


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Versions, cores and device."""
    packages = ("mv2v_jax", "jax", "jaxlib", "numpy", "scipy", "scikit-learn")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "cores": count_cores(),
        "device": f"{len(jax.devices())} x {device.platform} ({device.device_kind})",
    }


def print_environment() -> dict[str, Any]:
    """Print and return `environment`."""
    found = environment()
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


def console() -> Console:
    """A console as wide as the widest table: a narrow terminal may break a line, but no figure is cut off."""
    return Console(width=max(Console().width, 180))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; the first column holds text, the others figures."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A rich title is as narrow as its table.
    print(f"\n{title}", flush=True)
    console().print(table)


def format_scores(scores: dict[str, float]) -> list[str]:
    """The metrics in the order of `METRICS`, as a table shows them."""
    places = {"mean_rank": 2, "foscttm": 5}
    return [f"{scores[name]:.{places.get(name, 3)}f}" for name in METRICS]


def write_json(path: Path | None, record: dict[str, Any]) -> None:
    """Write the figures, if ``--json`` named a file."""
    if path is not None:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
