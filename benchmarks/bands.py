"""Within which bands does the quality of a fit stay from seed to seed, on small data of several kinds?

    python -m benchmarks.bands [--seeds 20] [--json FILE]

The bundled rows, as they are and changed in ways that `benchmarks.generality` measures on more of them; `fast` with one
restart. A test compares two seeds with these bands, so that a change that costs quality is noticed.
"""

import dataclasses
import statistics
from typing import Any

import numpy as np

from benchmarks.common import (
    Split,
    add_json_option,
    make_parser,
    print_environment,
    print_table,
    read_rows,
    split_rows,
    to_float32,
    write_json,
)
from benchmarks.corpora import ONE_TIMES, PERCENT_TIMES, with_long_rows, with_private_axis
from benchmarks.generality import Fit, fit_once

SCORES = ("top1", "foscttm")


def slices() -> dict[str, Split]:
    """The bundled rows by the name of what was changed in them."""
    source, num_eval = read_rows(None, "minilm")
    target, _ = read_rows(None, "wordllama")
    split = to_float32(split_rows(np.asarray(source), np.asarray(target), num_eval))
    back = to_float32(split_rows(np.asarray(target), np.asarray(source), num_eval))
    half = len(split.x) // 2
    return {
        "bundled": split,
        "bundled-back": back,
        "half-of-x": dataclasses.replace(split, x=split.x[:half], y_true=split.y_true[:half]),
        "long-one": with_long_rows(split, ONE_TIMES, None, False),
        "long-percent-both": with_long_rows(split, PERCENT_TIMES, 0.01, True),
        "axis-0.05": with_private_axis(split, 0.05),
    }


def fit_slice(split: Split, seed: int) -> Fit:
    """A fit as `benchmarks.generality` makes it, by the preset and the number of restarts of the bands."""
    return fit_once(split, ("fast", 1), seed)


def main(arguments: list[str] | None = None) -> dict[str, list[Fit]]:
    """Fit and print the table; returns all fits by slice."""
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="number of random seeds per slice (default: 20)")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    environment = print_environment()
    found: dict[str, list[Fit]] = {}
    table: list[list[str]] = []
    for name, split in slices().items():
        found[name] = [fit_slice(split, seed) for seed in range(options.seeds)]
        row = [name, f"{len(split.x):,} > {len(split.y):,}"]
        for score in SCORES:
            values: list[Any] = [fit["scores"][score] for fit in found[name]]
            row += [f"{statistics.mean(values):.4f}", f"{statistics.pstdev(values):.4f}"]
            row.append(f"{min(values):.4f} to {max(values):.4f}")
        table.append(row)
        print(" | ".join(row), flush=True)
    columns = ["slice", "rows"]
    for score in ("top-1", "FOSCTTM"):
        columns += [f"{score}, mean", "deviation", "range"]
    print_table(f"{options.seeds} seeds of fast, one restart", columns, table)
    if options.json:
        write_json(options.json, {"environment": environment, "fits": found})
    return found


if __name__ == "__main__":
    main()
