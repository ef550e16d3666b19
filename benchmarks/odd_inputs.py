"""Does the verdict follow the truth on inputs of unusual sizes and values?

    python -m benchmarks.odd_inputs [--data FOLDER] [--only NAME,...] [--preset NAME] [--restarts 2] [--json FILE]

One line per input: pairs of encoders with few rows, fewer rows than dimensions, thousands of dimensions, repeated rows,
an axis that one side has alone, a common offset, three bits per number, columns of zeros. A verdict follows the truth
unless it calls a map `aligned` that is not right, or one `not_aligned` that is.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import (
    add_folder_option,
    add_json_option,
    check_folder,
    evaluate_oracle,
    make_parser,
    pick_rows,
    print_environment,
    print_table,
    read_names,
    read_rows,
    to_float32,
    write_json,
)
from benchmarks.generality import fit_once
from benchmarks.population import judge
from mv2v_jax.config import PRESETS

MAX_ROWS = 3_000
# Rows of one side, and the side: 0 for the source, 1 for the target.
Change = Callable[[np.random.Generator, np.ndarray, int], np.ndarray]


class Kind(NamedTuple):
    """One unusual input.

    Attributes:
        rows: number of fitting rows per side.
        change: what the rows of each side become.
        distinct: number of distinct rows per side; all if ``None``.
    """

    rows: int
    change: Change
    distinct: int | None = None


def _as_they_are(_rng, rows, _side):
    return rows


def _embedded(dims: int) -> Change:
    """Rows in a random subspace of ``dims`` dimensions, with a little noise in all of them."""

    def change(rng, rows, _side):
        turn = np.linalg.qr(rng.normal(size=(dims, rows.shape[1])))[0].T
        return rows @ turn + 0.01 * rows.std() * rng.normal(size=(len(rows), dims)).astype(np.float32)

    return change


def _private_axis(rng, rows, side):
    """The target has an axis of its own, as long as the rows."""
    lengths = np.linalg.norm(rows - rows.mean(0), axis=1).mean()
    return np.hstack([rows, rng.normal(size=(len(rows), 1)) * lengths]) if side else rows


def _offset(_rng, rows, _side):
    return rows + 100 * np.linalg.norm(rows, axis=1).mean() / np.sqrt(rows.shape[1])


def _three_bits(_rng, rows, _side):
    """Eight levels between three standard deviations on either side of the mean."""
    scaled = (rows - rows.mean(0)) / np.maximum(rows.std(0), 1e-9)
    return np.clip(np.round(scaled * 7 / 6 + 3.5), 0, 7)


def _zero_columns(_rng, rows, _side):
    return np.hstack([rows, np.zeros((len(rows), 128), rows.dtype)])


KINDS = {
    "usual": Kind(MAX_ROWS, _as_they_are),
    "30-rows": Kind(30, _as_they_are),  # The minimum: as many as clusters.
    "45-rows": Kind(45, _as_they_are),
    "60-rows": Kind(60, _as_they_are),
    "fewer-rows-than-dimensions": Kind(200, _as_they_are),
    "4096-dimensions": Kind(MAX_ROWS, _embedded(4_096)),
    "50-distinct-rows": Kind(MAX_ROWS, _as_they_are, distinct=50),
    "private-axis": Kind(MAX_ROWS, _private_axis),
    "common-offset": Kind(MAX_ROWS, _offset),
    "three-bits": Kind(MAX_ROWS, _three_bits),
    "zero-columns": Kind(MAX_ROWS, _zero_columns),
}
COLUMNS = ["input", "rows", "dimensions", "top-1", "oracle", "truth", "verdict", "confidence", "estimate", "follows"]


def make_split(kind: Kind, source: np.ndarray, target: np.ndarray, num_eval: int):
    """The rows of one kind by the protocol: the last ones evaluate, and both sides get other texts."""
    rng = np.random.default_rng(0)
    rows = min(kind.rows, (len(source) - num_eval) // 2)
    x, y = (
        start + rng.integers(kind.distinct, size=rows) if kind.distinct else np.arange(start, start + rows)
        for start in (0, rows)
    )
    source, target = (
        kind.change(rng, np.asarray(rows, np.float32), side) for side, rows in enumerate((source, target))
    )
    return to_float32(pick_rows(source, target, x, y, slice(len(source) - num_eval, None)))


def follows(verdict: str, truth: str) -> bool:
    """Whether a verdict does not contradict the truth."""
    return not (verdict == "ALIGNED" and truth != "right") and not (verdict == "NOT_ALIGNED" and truth == "right")


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Fit every kind and print the table; returns a record per kind."""
    parser = make_parser(__doc__)
    add_folder_option(parser)
    parser.add_argument("--only", type=read_names("inputs", KINDS), metavar="NAME,...", default=list(KINDS))
    parser.add_argument("--preset", choices=PRESETS, default="fast", help="settings of the fit (default: fast)")
    parser.add_argument("--restarts", type=int, default=2, help="searches per fit (default: 2)")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    record = print_environment()
    folder = check_folder(options.data)
    (source, num_eval), (target, _) = (read_rows(folder, name) for name in ("minilm", "wordllama"))
    found = [_fit(name, options, source, target, num_eval) for name in options.only]
    title = f"preset {options.preset}, {options.restarts} restarts, evaluated on {num_eval:,} rows"
    print_table(title, COLUMNS, [_line(fit) for fit in found])
    write_json(options.json, {"environment": record, "fits": found})
    return found


def _fit(name: str, options: argparse.Namespace, source: np.ndarray, target: np.ndarray, num_eval: int):
    split = make_split(KINDS[name], source, target, num_eval)
    fit = fit_once(split, (options.preset, options.restarts), seed=0)
    oracle = evaluate_oracle(split)
    truth = judge(fit["scores"], oracle)
    shapes = {"rows": split.x.shape[0], "dims": (split.x.shape[1], split.y.shape[1])}
    fit = {"input": name, **shapes, **fit, "oracle": oracle, "truth": truth, "follows": follows(fit["verdict"], truth)}
    print(" ".join(_line(fit)), flush=True)
    return fit


def _line(fit: dict[str, Any]) -> list[str]:
    return [
        fit["input"],
        f"{fit['rows']:,}",
        " > ".join(f"{dims:,}" for dims in fit["dims"]),
        f"{fit['scores']['top1']:.3f}",
        f"{fit['oracle']['top1']:.3f}",
        fit["truth"],
        f"{fit['verdict'].lower()} ({fit['reason'].lower()})",
        f"{fit['confidence']:.2f}",
        f"{fit['estimated_top1']:.2f}",
        "yes" if fit["follows"] else "no",
    ]


if __name__ == "__main__":
    main()
