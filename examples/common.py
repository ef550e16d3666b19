"""What the examples share: the rows of the bundled data or of a folder, and a table of results."""

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax import Centering, DemoData, load_demo_data

NUM_EVAL = 8_192


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every example."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="folder with wordnet.minilm.npy, wordnet.wordllama.npy and wordnet.texts.json.gz (default: bundled data)",
    )
    parser.add_argument("--rows", type=int, help="number of fitting rows per space (default: all)")
    return parser


def load_rows(options: argparse.Namespace, source: str = "minilm", target: str = "wordllama") -> DemoData:
    """Raw rows of two encoders. X and Y have no text in common; the evaluation rows are of the same texts."""
    if options.data is None:
        data = load_demo_data(source, target)
    else:
        rows_x, rows_y = (np.load(options.data / f"wordnet.{name}.npy").astype(np.float32) for name in (source, target))
        num_fit = len(rows_x) - NUM_EVAL
        half = num_fit // 2
        data = DemoData(
            x=rows_x[:half],
            y=rows_y[half:num_fit],
            y_true=rows_y[:half],
            x_eval=rows_x[num_fit:],
            y_eval=rows_y[num_fit:],
        )
    return dataclasses.replace(
        data, x=data.x[: options.rows], y=data.y[: options.rows], y_true=data.y_true[: options.rows]
    )


def unit_rows(rows: jax.Array) -> jax.Array:
    """Rows of unit length."""
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def centred_rows(rows: jax.Array | np.ndarray, centering: Centering) -> jax.Array:
    """Raw rows of one space as a map sees them: without their mean, of unit length."""
    return unit_rows(jnp.asarray(rows) - centering.mean[None])


def random_rotation(d_x: int, d_y: int) -> np.ndarray:
    """A random semi-orthogonal matrix ``[d_x, d_y]``, for comparison with a map that was learned."""
    size = max(d_x, d_y)
    return np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0][:d_x, :d_y]


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; the first column holds text, the others figures."""
    lines = [["", *columns], *map(list, rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    print(f"\n{title}")
    for line in lines:
        figures = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        print("  ".join([line[0].ljust(widths[0]), *figures]))
