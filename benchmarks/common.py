"""What the benchmarks share: data, the protocol, timing, tables and the line that says where they ran."""

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
import scipy.linalg  # noqa: F401  JAX calls its LAPACK, which can only be told how many threads to use once it is loaded
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from mv2v_jax import PRESETS, LinearMap
from mv2v_jax.data.demo import load_encoder
from mv2v_jax.evaluation import metrics

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
BUNDLED_ENCODERS = ("minilm", "wordllama")
METRICS = ("top1", "top5", "top10", "mean_rank", "mrr", "foscttm", "cosine")


# ---------------------------------------------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True)
class Split:
    """One pair of encoders under the protocol. All raw rows.

    Attributes:
        x: ``[n // 2, d_x]``, fitting rows of the source.
        y: ``[n - n // 2, d_y]``, fitting rows of the target, of other texts.
        y_true: ``[n // 2, d_y]``, target rows of the texts of ``x``; for the oracle only.
        x_eval: ``[e, d_x]``, held-out rows.
        y_eval: ``[e, d_y]``, their true partners, row i with row i.
    """

    x: np.ndarray
    y: np.ndarray
    y_true: np.ndarray
    x_eval: np.ndarray
    y_eval: np.ndarray


def split_rows(source: np.ndarray, target: np.ndarray, num_eval: int) -> Split:
    """The protocol: the last ``num_eval`` rows judge; the first half of the others is X, the second half Y."""
    n = source.shape[0] - num_eval
    if num_eval < 1 or n < 2 or source.shape[0] != target.shape[0]:
        raise SystemExit(f"cannot judge on {num_eval} of {source.shape[0]} source and {target.shape[0]} target rows")
    half = n // 2
    return Split(
        x=source[:half],
        y=target[half:n],
        y_true=target[:half],
        x_eval=source[n:],
        y_eval=target[n:],
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which rows of which encoders are aligned."""
    parser.add_argument("--data", type=Path, help="folder with wordnet.*.npy (default: ../shared/data, else bundled)")
    parser.add_argument("--rows", type=int, help="use the first rows only (default: all)")
    parser.add_argument("--eval", type=int, help="rows that judge (default: 8,192 of 60,000, the bundled set's 2,000)")
    parser.add_argument("--source", default="minilm", help="source encoder: minilm, wordllama, or lsa where made")
    parser.add_argument("--target", default="wordllama", help="target encoder")
    add_json_option(parser)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """The option that keeps the figures."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")


def add_preset_option(parser: argparse.ArgumentParser, default: list[str]) -> None:
    """The option that says which presets are measured."""
    parser.add_argument("--presets", type=read_names("presets", PRESETS), default=default, metavar="NAME,...")


def read_names(kind: str, known: Collection[str]) -> Callable[[str], list[str]]:
    """What reads names from an option such as ``fast,default``; ``kind`` says what the ``known`` ones are."""

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
        raise argparse.ArgumentTypeError(f"whole numbers above 0 with commas between, found {text!r}")
    return counts


def find_data(data: Path | None) -> Path | None:
    """The folder given, else the shared one beside the checkout, else ``None``: the bundled set."""
    if data is not None:
        if not data.is_dir():
            raise SystemExit(f"--data: no such folder: {data}")
        return data
    return SHARED if SHARED.is_dir() else None


def read_rows(folder: Path | None, name: str) -> tuple[np.ndarray, int]:
    """One encoder's rows, and how many of them judge where nothing else is said."""
    if folder is None:
        if name not in BUNDLED_ENCODERS:
            raise SystemExit(f"the bundled set has {' and '.join(BUNDLED_ENCODERS)}, not {name}")
        return load_encoder(name)
    path = folder / f"wordnet.{name}.npy"
    if not path.exists():
        made = " (make_lsa.py in that folder makes it)" if name == "lsa" else ""
        raise SystemExit(f"{folder} has no {path.name}{made}")
    return np.load(path, mmap_mode="r"), 8_192


def load_split(options: argparse.Namespace) -> tuple[Split, dict[str, Any]]:
    """Rows by the options of `add_data_options`, said on standard output; and the same as a record."""
    folder = find_data(options.data)
    source, num_eval = read_rows(folder, options.source)
    target, _ = read_rows(folder, options.target)
    rows = min(options.rows or source.shape[0], source.shape[0])
    if options.eval is not None:
        num_eval = options.eval
    elif rows < source.shape[0]:
        # A part of the data keeps the whole's proportion, as the default could be more than all of it.
        num_eval = max(1, rows * num_eval // source.shape[0])
    split = split_rows(np.asarray(source[:rows]), np.asarray(target[:rows]), num_eval)
    split = dataclasses.replace(split, **{f.name: _to_float32(split, f.name) for f in dataclasses.fields(split)})
    kind = "bundled" if folder is None else "given" if options.data else "shared"
    print(
        f"data: {kind}{f' ({folder})' if options.data else ''}, {options.source} to {options.target}, "
        f"n {split.x.shape[0]:,}, m {split.y.shape[0]:,}, judged on {num_eval:,}",
        flush=True,
    )
    record = {"data": kind, "source": options.source, "target": options.target, "rows": rows, "eval": num_eval}
    return split, record


def _to_float32(split: Split, name: str) -> np.ndarray:
    return np.asarray(getattr(split, name), dtype=np.float32)


def evaluate(linear_map: LinearMap, split: Split) -> dict[str, float]:
    """Scores of a map on the rows that judge, as plain numbers."""
    scores = metrics.evaluate(linear_map, jax.numpy.asarray(split.x_eval), jax.numpy.asarray(split.y_eval))
    return {name: float(getattr(scores, name)) for name in METRICS}


def any_rotation(d_x: int, d_y: int) -> np.ndarray:
    """A map ``[d_x, d_y]`` that knows nothing: part of a random orthogonal matrix, the same every time."""
    size = max(d_x, d_y)
    return np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0][:d_x, :d_y]


def judge_oracle(split: Split) -> dict[str, float]:
    """Scores of the best orthogonal map, fitted on true pairs."""
    return evaluate(metrics.oracle(split.x, split.y_true, split.y), split)


# -------------------------------------------------------------------------------------------------------------- timing


def seconds_of(fun: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The result of one call of JAX functions, ready, and how long it took.

    With one thread for LAPACK, as ``OPENBLAS_NUM_THREADS=1`` and the command line have it.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        start = time.perf_counter()
        result = jax.block_until_ready(fun(*args))
        return result, time.perf_counter() - start


def compile_seconds(fun: Callable[..., Any], *args: Any) -> tuple[jax.stages.Compiled, float]:
    """``fun`` compiled for these arguments, and how long tracing and compiling took."""
    start = time.perf_counter()
    compiled = jax.jit(fun).lower(*args).compile()
    return compiled, time.perf_counter() - start


def steady_seconds(fun: Callable[..., Any], *args: Any, repeats: int = 3) -> tuple[Any, float]:
    """The result, and the median time of ``repeats`` calls after one that warms up."""
    seconds_of(fun, *args)
    runs = [seconds_of(fun, *args) for _ in range(repeats)]
    return runs[-1][0], statistics.median(seconds for _, seconds in runs)


# ------------------------------------------------------------------------------------------------------------- showing


def count_cores() -> int:
    """Cores this process may use."""
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
    """Print a table; the first column is text, the others are figures."""
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


def print_requirement(text: str, passed: bool | None) -> dict[str, Any]:
    """Print one requirement with its verdict; ``None`` where this run cannot tell."""
    verdict = {True: "PASS", False: "FAIL", None: "not judged"}[passed]
    print(f"{verdict}: {text}")
    return {"requirement": text, "passed": passed}


def write_json(path: Path | None, record: dict[str, Any]) -> None:
    """Write the figures, where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
