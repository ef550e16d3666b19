"""How good are the maps, seed by seed? The published method, the presets and the oracle on the same rows.

    python -m benchmarks.quality [--data FOLDER] [--rows N --eval E] [--seeds 5] [--presets NAME,...]
        [--skip-reference] [--json FILE]
    python -m benchmarks.quality --sizes 1000,3000,8000 [--data FOLDER] [--seeds 5] [--skip-reference] [--json FILE]

The second form shows how many rows a fit needs: the median top-1 by rows per space, evaluated on 1,600 others.
"""

import argparse
import copy
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import reference
from benchmarks.common import (
    METRICS,
    Split,
    add_data_options,
    add_preset_option,
    compile_seconds,
    evaluate,
    evaluate_oracle,
    format_scores,
    load_split,
    make_parser,
    print_environment,
    print_table,
    read_counts,
    seconds_of,
    write_json,
)
from mv2v_jax import Config, align

# Number of rows on which every size of the curve is evaluated.
CURVE_EVAL = 1_600

Scores = dict[str, list[dict[str, float]]]


def median_top1(runs: list[dict[str, float]]) -> float:
    """Median top-1 over all seeds."""
    return statistics.median(run["top1"] for run in runs)


def summarise(scores: Scores) -> list[list[str]]:
    """Two table rows per method: the median of every score, and the seed with the lowest top-1.

    The last column compares the top-1 of the row with the median top-1 of the published method.
    """
    rows = []
    for name, runs in scores.items():
        median = {score: statistics.median(run[score] for run in runs) for score in runs[0]}
        worst = min(runs, key=lambda run: run["top1"])
        for label, run in (("median", median), ("worst", worst)):
            change = f"{run['top1'] - median_top1(scores['reference']):+.3f}" if "reference" in scores else ""
            rows.append([f"{name}, {label}", *format_scores(run), f"{run['seconds']:.1f}", change])
    return rows


def fit_reference(split: Split, seed: int) -> dict[str, float]:
    """Scores and seconds of the published method."""
    linear_map, stages = reference.fit(split.x, split.y, seed)
    return {**evaluate(linear_map, split), "seconds": sum(stages.values())}


def run_sizes(options: argparse.Namespace) -> dict[str, Any]:
    """Fit the reference and the default on the first rows alone, for every size; prints and returns the curve."""
    curve: dict[str, Any] = {}
    methods = ["default"] if options.skip_reference else ["reference", "default"]
    for size in options.sizes:
        part = copy.copy(options)
        part.rows, part.eval = 2 * size + CURVE_EVAL, CURVE_EVAL
        split, data = load_split(part)
        if split.x.shape[0] != size:
            raise SystemExit(
                f"--sizes: {size:,} rows per space and {CURVE_EVAL:,} to evaluate on are more than the {data['rows']} "
                "rows of the data"
            )
        x, y = jnp.asarray(split.x), jnp.asarray(split.y)
        config = Config.preset("default")
        compiled, compiling = compile_seconds(align, jax.random.key(0), x, y, config)
        scores: Scores = {name: [] for name in methods}
        for seed in range(options.seeds):
            if not options.skip_reference:
                scores["reference"].append(fit_reference(split, seed))
            result, seconds = seconds_of(compiled, jax.random.key(seed), x, y, config)
            scores["default"].append({**evaluate(result.map, split), "seconds": seconds})
        oracle = evaluate_oracle(split)
        shown = ", ".join(f"{name} {median_top1(runs):.3f}" for name, runs in scores.items())
        print(f"{size:,} per space: {shown}, oracle {oracle['top1']:.3f}", flush=True)
        curve[str(size)] = {"data": data, "scores": scores, "oracle": oracle, "compile_seconds": compiling}
    print_table(
        f"median top-1 of {options.seeds} seeds by rows per space, evaluated on {CURVE_EVAL:,}",
        ["rows per space", *methods, "oracle"],
        [
            [
                f"{int(size):,}",
                *(f"{median_top1(found['scores'][name]):.3f}" for name in methods),
                f"{found['oracle']['top1']:.3f}",
            ]
            for size, found in curve.items()
        ],
    )
    return curve


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fit every method with every seed and print the tables; returns the figures."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--seeds", type=int, default=5, help="number of random seeds (default: 5)")
    parser.add_argument("--skip-reference", action="store_true", help="leave out the published method, the slowest")
    add_preset_option(parser, ["notebook", "fast", "default"])
    parser.add_argument(
        "--sizes", type=read_counts, metavar="N,N,...", help="draw the curve over these numbers of rows per space"
    )
    options = parser.parse_args(arguments)
    if options.sizes and (options.rows or options.eval):
        parser.error("--sizes sets the number of rows: leave out --rows and --eval")
    environment = print_environment()
    if options.sizes:
        record = {"environment": environment, "sizes": run_sizes(options)}
        write_json(options.json, record)
        return record
    split, data = load_split(options)
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)

    scores: Scores = {} if options.skip_reference else {"reference": []}
    compiled, compiling = {}, {}
    configs = {name: Config.preset(name) for name in options.presets}
    for name, config in configs.items():
        scores[name] = []
        compiled[name], compiling[name] = compile_seconds(align, jax.random.key(0), x, y, config)
        print(f"{name}: compiled in {compiling[name]:.1f} s, not included in the seconds below", flush=True)

    oracle = evaluate_oracle(split)
    for seed in range(options.seeds):
        if not options.skip_reference:
            scores["reference"].append(fit_reference(split, seed))
        for name, config in configs.items():
            result, seconds = seconds_of(compiled[name], jax.random.key(seed), x, y, config)
            scores[name].append({**evaluate(result.map, split), "seconds": seconds})
        rows = [[name, *format_scores(runs[-1]), f"{runs[-1]['seconds']:.1f}"] for name, runs in scores.items()]
        print_table(f"seed {seed}", ["method", *METRICS, "seconds"], [*rows, ["oracle", *format_scores(oracle), ""]])

    print_table(
        f"{options.seeds} seeds; last column: top-1 less the median top-1 of the reference",
        ["method", *METRICS, "seconds", "over reference"],
        [*summarise(scores), ["oracle", *format_scores(oracle), "", ""]],
    )
    record = {"environment": environment, "data": data}
    record |= {"scores": scores, "oracle": oracle, "compile_seconds": compiling}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
