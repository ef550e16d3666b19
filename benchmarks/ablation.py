"""What every choice of the default is worth: the same fits with one choice changed at a time.

python -m benchmarks.ablation [--data DIR] [--rows N --eval E] [--seeds 3] [--small] [--json FILE]

On few rows, 3,000 a side, where basins decide; and, unless --small is given, on all of them, where precision does.
"""

import argparse
import copy
import dataclasses
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import (
    Split,
    add_data_options,
    evaluate,
    judge_oracle,
    load_split,
    print_environment,
    print_table,
    seconds_of,
    write_json,
)
from mv2v_jax import PRESETS, align

# 3,000 rows a side and as many to judge as the project's goal for that size names.
SMALL_ROWS, SMALL_EVAL = 7_600, 1_600
CHOICES: dict[str, dict[str, float]] = {
    "default": {},
    "20 clusters": {"num_clusters": 20},
    "all anchor sets kept": {"kept_sets": 30},
    "searched in all directions": {"search_dims": 0},
    "no rows held out": {"held_out_rows": 0},
    "no annealing": {"anneal_steps": 0},
    "half the annealing": {"anneal_steps": 50},
    "no weights at first": {"anneal_power": 0.4},
    "10 neighbours when annealing": {"anneal_neighbors": 10},
    "no settling": {"csls_steps": 0, "whole_steps": 0},
    "settled on samples only": {"whole_steps": 0},
    "2 neighbours when settling": {"ample_rows": 0},
    "no weights at last": {"reliability_power": 0.0},
    "no whitening": {"whitening_power": 0.0},
}

Runs = dict[str, list[dict[str, float]]]


def fit_choice(split: Split, changes: dict[str, Any], seeds: int) -> list[dict[str, float]]:
    """Scores of every seed; their seconds are the median call but for the first, which may compile."""
    config = dataclasses.replace(PRESETS["default"](), **changes)
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)
    results = [seconds_of(align, jax.random.key(seed), x, y, config) for seed in range(seeds)]
    # A single seed is fitted again, for its time alone.
    again = results[1:] or [seconds_of(align, jax.random.key(0), x, y, config)]
    steady = statistics.median(seconds for _, seconds in again)
    return [{**evaluate(result.map, split), "seconds": steady} for result, _ in results]


def summarise(runs: Runs, oracle: dict[str, float]) -> list[list[str]]:
    """Table rows: medians and the worst seed of every choice, and what the change did to the median."""
    medians = {name: statistics.median(run["top1"] for run in found) for name, found in runs.items()}
    rows = [
        [
            name,
            f"{medians[name]:.3f}",
            "" if name == "default" else f"{medians[name] - medians['default']:+.3f}",
            f"{min(run['top1'] for run in found):.3f}",
            f"{statistics.median(run['mean_rank'] for run in found):.2f}",
            f"{found[0]['seconds']:.2f}",
        ]
        for name, found in runs.items()
    ]
    return [*rows, ["oracle", f"{oracle['top1']:.3f}", "", "", f"{oracle['mean_rank']:.2f}", ""]]


def main(arguments: list[str] | None = None) -> dict[str, Runs]:
    """Read the arguments, fit every choice on every size, print the tables; returns scores by size and choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="leave out the fits on all rows")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    environment = print_environment()
    few = copy.copy(options)
    few.rows, few.eval = SMALL_ROWS, SMALL_EVAL
    found: dict[str, Runs] = {}
    records = {}
    for size, size_options in {"few rows": few, **({} if options.small else {"all rows": options})}.items():
        split, data = load_split(size_options)
        oracle = judge_oracle(split)
        found[size] = {}
        for name, changes in CHOICES.items():
            found[size][name] = fit_choice(split, changes, options.seeds)
            top1 = ", ".join(f"{run['top1']:.3f}" for run in found[size][name])
            print(f"{name}: top-1 {top1}", flush=True)
        print_table(
            f"{size}, {split.x.shape[0]:,} a side: medians of {options.seeds} seeds, compiling left out",
            ["one choice changed", "top-1", "change", "worst top-1", "mean rank", "seconds"],
            summarise(found[size], oracle),
        )
        records[size] = {"data": data, "oracle": oracle, "scores": found[size]}
    write_json(options.json, {"environment": environment, "choices": CHOICES, "sizes": records})
    return found


if __name__ == "__main__":
    main()
