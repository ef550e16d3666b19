"""What is each choice of the default preset worth? The same fits with one choice changed at a time.

    python -m benchmarks.ablation [--data FOLDER] [--rows N --eval E] [--seeds 3] [--small] [--json FILE]

The fits run twice: on 3,000 rows per space, where a choice decides between basins; and, unless --small is given, on all
rows, where it decides the precision.
"""

import copy
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import (
    Split,
    add_data_options,
    evaluate,
    evaluate_oracle,
    load_split,
    make_parser,
    print_environment,
    print_table,
    seconds_of,
    write_json,
)
from mv2v_jax import Config, align

# 3,000 fitting rows per space and 1,600 rows to evaluate on.
SMALL_ROWS, SMALL_EVAL = 7_600, 1_600
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "20 clusters": {"anchors": {"num_clusters": 20}},
    "all anchor sets kept": {"anchors": {"kept_sets": 30}},
    "search in all directions": {"search_dims": 0},
    "no rows held out": {"held_out_rows": 0},
    "no annealing": {"annealing": {"steps": 0}},
    "half the annealing": {"annealing": {"steps": 50}},
    "no weights at first": {"annealing": {"power": 0.4}},
    "10 neighbours when annealing": {"annealing": {"num_neighbors": 10}},
    "no settling": {"settling": {"steps": 0, "whole_steps": 0}},
    "settling on samples only": {"settling": {"whole_steps": 0}},
    "2 neighbours when settling": {"settling": {"ample_rows": 0}},
    "no polishing": {"polishing": {"steps": 0}},
    "no weights at last": {"whitening": {"reliability_power": 0.0}},
    "no whitening": {"whitening": {"power": 0.0}},
}

Runs = dict[str, list[dict[str, float]]]


def fit_choice(split: Split, changes: dict[str, Any], seeds: int) -> list[dict[str, float]]:
    """Scores of every seed; their seconds are the median over all calls but the first, which may compile."""
    config = Config.preset("default").replace(**changes)
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)
    results = [seconds_of(align, jax.random.key(seed), x, y, config) for seed in range(seeds)]
    # A single seed is fitted once more, for its time alone.
    again = results[1:] or [seconds_of(align, jax.random.key(0), x, y, config)]
    steady = statistics.median(seconds for _, seconds in again)
    return [{**evaluate(result.map, split), "seconds": steady} for result, _ in results]


def summarise(runs: Runs, oracle: dict[str, float]) -> list[list[str]]:
    """Table rows: medians and the worst seed of every choice, and the change of the median."""
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
    """Fit every choice on every size and print the tables; returns scores by size and choice."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--seeds", type=int, default=3, help="number of random seeds (default: 3)")
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
        oracle = evaluate_oracle(split)
        found[size] = {}
        for name, changes in CHOICES.items():
            found[size][name] = fit_choice(split, changes, options.seeds)
            top1 = ", ".join(f"{run['top1']:.3f}" for run in found[size][name])
            print(f"{name}: top-1 {top1}", flush=True)
        print_table(
            f"{size}, {split.x.shape[0]:,} per space: medians of {options.seeds} seeds, without compile time",
            ["one choice changed", "top-1", "change", "worst top-1", "mean rank", "seconds"],
            summarise(found[size], oracle),
        )
        records[size] = {"data": data, "oracle": oracle, "scores": found[size]}
    write_json(options.json, {"environment": environment, "choices": CHOICES, "sizes": records})
    return found


if __name__ == "__main__":
    main()
