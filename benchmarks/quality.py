"""How good the maps are, seed by seed: the published method, the presets and the oracle on the same rows.

python -m benchmarks.quality [--data DIR] [--seeds 5] [--presets NAME ...] [--skip-reference] [--json FILE]
python -m benchmarks.quality --sizes 1000,3000,8000 [--data DIR] [--seeds 5] [--skip-reference] [--json FILE]

The second form shows how many rows it takes: the median top-1 by rows a side, each judged on 1,600 others.
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
    compile_seconds,
    evaluate,
    format_scores,
    judge_oracle,
    load_split,
    print_environment,
    print_requirement,
    print_table,
    read_counts,
    seconds_of,
    write_json,
)
from mv2v_jax import PRESETS, align

WITHIN_REFERENCE = 0.015
WITHIN_OWN_MEDIAN = 0.03
# What the default must reach on the whole of the shared data, and which data that is.
LEAST_MEDIAN, LEAST_WORST = 0.68, 0.66
WHOLE = {"source": "minilm", "target": "wordllama", "rows": 60_000, "eval": 8_192}
# Rows that judge every size of the curve.
CURVE_EVAL = 1_600

Scores = dict[str, list[dict[str, float]]]


def top1(runs: list[dict[str, float]]) -> list[float]:
    """Top-1 of every seed, rounded as far as requirements are stated, so that float noise decides nothing."""
    return [round(run["top1"], 6) for run in runs]


def judge(scores: Scores, data: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold the runs of every method against what is required; ``None`` where a method or data were left out."""
    whole = data.items() >= WHOLE.items()
    default = top1(scores["default"])
    default_median = statistics.median(default)
    notebook, published = (
        statistics.median(top1(scores[name])) if name in scores else None for name in ("notebook", "reference")
    )
    shown_notebook, shown = ("not run" if median is None else f"{median:.3f}" for median in (notebook, published))
    return [
        print_requirement(
            f"notebook's median top-1 {shown_notebook} within {WITHIN_REFERENCE} of the reference's {shown}",
            None if notebook is None or published is None else abs(notebook - published) <= WITHIN_REFERENCE,
        ),
        print_requirement(
            f"default's top-1 in every seed, worst {min(default):.3f}, at or above the reference's median {shown}",
            None if published is None else min(default) >= published,
        ),
        print_requirement(
            f"default's worst top-1 {min(default):.3f} at most {WITHIN_OWN_MEDIAN} below its median "
            f"{default_median:.3f}",
            min(default) >= default_median - WITHIN_OWN_MEDIAN,
        ),
        print_requirement(
            f"default's median top-1 {default_median:.3f} at least {LEAST_MEDIAN} on all 60,000 texts",
            default_median >= LEAST_MEDIAN if whole else None,
        ),
        print_requirement(
            f"default's worst top-1 {min(default):.3f} at least {LEAST_WORST} on all 60,000 texts",
            min(default) >= LEAST_WORST if whole else None,
        ),
    ]


def summarise(scores: Scores) -> list[list[str]]:
    """Table rows: median of every score, and the seed of the lowest top-1, per method."""
    rows = []
    for name, runs in scores.items():
        median = {score: statistics.median(run[score] for run in runs) for score in runs[0]}
        worst = min(runs, key=lambda run: run["top1"])
        for label, run in (("median", median), ("worst", worst)):
            rows.append([f"{name}, {label}", *format_scores(run), f"{run['seconds']:.1f}"])
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
            raise SystemExit(f"--sizes: {size:,} a side and {CURVE_EVAL:,} to judge are more than {data['rows']} rows")
        x, y = jnp.asarray(split.x), jnp.asarray(split.y)
        config = PRESETS["default"]()
        compiled, compiling = compile_seconds(align, jax.random.key(0), x, y, config)
        scores: Scores = {name: [] for name in methods}
        for seed in range(options.seeds):
            if not options.skip_reference:
                scores["reference"].append(fit_reference(split, seed))
            result, seconds = seconds_of(compiled, jax.random.key(seed), x, y, config)
            scores["default"].append({**evaluate(result.map, split), "seconds": seconds})
        oracle = judge_oracle(split)
        shown = ", ".join(f"{name} {statistics.median(top1(runs)):.3f}" for name, runs in scores.items())
        print(f"{size:,} a side: {shown}, oracle {oracle['top1']:.3f}", flush=True)
        curve[str(size)] = {"data": data, "scores": scores, "oracle": oracle, "compile_seconds": compiling}
    print_table(
        f"median top-1 of {options.seeds} seeds by rows a side, judged on {CURVE_EVAL:,}",
        ["rows a side", *methods, "oracle"],
        [
            [
                f"{int(size):,}",
                *(f"{statistics.median(top1(found['scores'][name])):.3f}" for name in methods),
                f"{found['oracle']['top1']:.3f}",
            ]
            for size, found in curve.items()
        ],
    )
    return curve


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the arguments, fit every method with every seed, print the tables; returns the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--skip-reference", action="store_true", help="leave out the published method, by far slowest")
    parser.add_argument(
        "--presets",
        nargs="+",
        default=["notebook", "fast", "default"],
        choices=PRESETS,
        help="presets to fit; default is always among them",
    )
    parser.add_argument("--sizes", type=read_counts, metavar="N,N,...", help="the curve over these rows a side instead")
    options = parser.parse_args(arguments)
    if options.sizes and (options.rows or options.eval):
        parser.error("--sizes says how many rows there are: leave out --rows and --eval")
    presets = list(dict.fromkeys([*options.presets, "default"]))
    environment = print_environment()
    if options.sizes:
        write_json(options.json, {"environment": environment, "sizes": run_sizes(options)})
        return []
    split, data = load_split(options)
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)

    scores: Scores = {} if options.skip_reference else {"reference": []}
    compiled, compiling = {}, {}
    for name in presets:
        scores[name] = []
        compiled[name], compiling[name] = compile_seconds(align, jax.random.key(0), x, y, PRESETS[name]())
        print(f"{name}: compiled in {compiling[name]:.1f} s, not part of the seconds below", flush=True)

    oracle = judge_oracle(split)
    for seed in range(options.seeds):
        if not options.skip_reference:
            scores["reference"].append(fit_reference(split, seed))
        for name in presets:
            result, seconds = seconds_of(compiled[name], jax.random.key(seed), x, y, PRESETS[name]())
            scores[name].append({**evaluate(result.map, split), "seconds": seconds})
        rows = [[name, *format_scores(runs[-1]), f"{runs[-1]['seconds']:.1f}"] for name, runs in scores.items()]
        print_table(f"seed {seed}", ["method", *METRICS, "seconds"], [*rows, ["oracle", *format_scores(oracle), ""]])

    print_table(
        f"{options.seeds} seeds",
        ["method", *METRICS, "seconds"],
        [*summarise(scores), ["oracle", *format_scores(oracle), ""]],
    )
    print()
    verdicts = judge(scores, data)
    record = {"scores": scores, "oracle": oracle, "compile_seconds": compiling, "requirements": verdicts}
    write_json(options.json, {"environment": environment, "data": data, **record})
    return verdicts


if __name__ == "__main__":
    main()
