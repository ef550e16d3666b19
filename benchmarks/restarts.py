"""What more restarts cost and what they buy: the same fit from 1, 2, 4, ... searches.

python -m benchmarks.restarts [--data DIR] [--rows N --eval E] [--counts 1,2,4,...,32] [--seeds 3] [--json FILE]

The command line's default rests on this table: one search cannot be called aligned, for nothing agrees with it.
"""

import argparse
import statistics
from collections import Counter
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
    print_requirement,
    print_table,
    read_counts,
    seconds_of,
    write_json,
)
from mv2v_jax import PRESETS, Verdict, align_restarts

Runs = dict[int, list[dict[str, Any]]]
# So many restarts may cost so many fits on CPU.
RESTARTS, MOST_FITS = 8, 4.0


def fit_counts(split: Split, counts: list[int], seeds: int) -> Runs:
    """Scores, verdict and seconds by number of restarts, one fit a seed; nothing that compiles is timed."""
    x, y, config = jnp.asarray(split.x), jnp.asarray(split.y), PRESETS["default"]()
    runs: Runs = {}
    for count in counts:
        align_restarts(jax.random.key(seeds), x, y, count, config).best.map.W.block_until_ready()
        runs[count] = []
        for seed in range(seeds):
            found, seconds = seconds_of(align_restarts, jax.random.key(seed), x, y, count, config)
            verdict = Verdict(int(found.best.verdict)).name
            runs[count].append({**evaluate(found.best.map, split), "verdict": verdict, "seconds": seconds})
        top1 = ", ".join(f"{run['top1']:.3f}" for run in runs[count])
        print(f"{count} restarts: top-1 {top1}", flush=True)
    return runs


def median_seconds(runs: Runs) -> dict[int, float]:
    """Seconds by number of restarts."""
    return {count: statistics.median(run["seconds"] for run in found) for count, found in runs.items()}


def judge(runs: Runs) -> dict[str, Any]:
    """Whether eight restarts are cheap; ``None`` where they, or the single fit, were not counted."""
    seconds = median_seconds(runs)
    text = f"{RESTARTS} restarts cost at most {MOST_FITS:g} fits"
    if not {1, RESTARTS} <= seconds.keys():
        return print_requirement(text, None)
    fits = seconds[RESTARTS] / seconds[1]
    return print_requirement(f"{text}: {fits:.2f}", fits <= MOST_FITS)


def summarise(runs: Runs, oracle: dict[str, float]) -> list[list[str]]:
    """Table rows: top-1, verdicts, seconds, and those over the seconds of the first count."""
    seconds = median_seconds(runs)
    first = next(iter(seconds.values()))
    rows = [
        [
            str(count),
            f"{statistics.median(run['top1'] for run in found):.3f}",
            f"{min(run['top1'] for run in found):.3f}",
            ", ".join(f"{n} {name}" for name, n in Counter(run["verdict"] for run in found).items()),
            f"{seconds[count]:.1f}",
            f"{seconds[count] / first:.2f}",
        ]
        for count, found in runs.items()
    ]
    return [*rows, ["oracle", f"{oracle['top1']:.3f}", "", "", "", ""]]


def main(arguments: list[str] | None = None) -> Runs:
    """Read the arguments, fit, print the table; returns the runs by number of restarts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--counts", type=read_counts, default=[1, 2, 4, 8, 16, 32], metavar="N,N,...")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    environment = print_environment()
    split, data = load_split(options)
    oracle = judge_oracle(split)
    runs = fit_counts(split, options.counts, options.seeds)
    print_table(
        f"{split.x.shape[0]:,} rows a side, {options.seeds} seeds, compiling left out",
        ["restarts", "top-1, median", "top-1, worst", "verdicts", "seconds", "over the first"],
        summarise(runs, oracle),
    )
    record = {"environment": environment, "data": data, "oracle": oracle, "runs": runs, "requirement": judge(runs)}
    write_json(options.json, record)
    return runs


if __name__ == "__main__":
    main()
