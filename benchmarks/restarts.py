"""What do more restarts cost, and what do they buy? The same fit from 1, 2, 4, ... searches.

    python -m benchmarks.restarts [--data FOLDER] [--rows N --eval E] [--counts 1,2,4,...,32] [--seeds 3] [--json FILE]

A single search is never called aligned, because there is no other search to agree with it. The default of the command
line, two restarts, rests on this table.
"""

import statistics
from collections import Counter
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
    read_counts,
    seconds_of,
    write_json,
)
from mv2v_jax import Config, Verdict, align_restarts

Runs = dict[int, list[dict[str, Any]]]


def fit_counts(split: Split, counts: list[int], seeds: int) -> Runs:
    """Scores, verdict and seconds by number of restarts, one fit per seed; compile time is not included."""
    x, y, config = jnp.asarray(split.x), jnp.asarray(split.y), Config.preset("default")
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


def summarise(runs: Runs, oracle: dict[str, float]) -> list[list[str]]:
    """Table rows: top-1, verdicts, seconds, and the ratio to the seconds of the first count."""
    seconds = {count: statistics.median(run["seconds"] for run in found) for count, found in runs.items()}
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
    """Fit and print the table; returns the runs by number of restarts."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    parser.add_argument(
        "--counts", type=read_counts, default=[1, 2, 4, 8, 16, 32], metavar="N,N,...", help="numbers of restarts"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of random seeds (default: 3)")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    environment = print_environment()
    split, data = load_split(options)
    oracle = evaluate_oracle(split)
    runs = fit_counts(split, options.counts, options.seeds)
    print_table(
        f"{split.x.shape[0]:,} rows per space, {options.seeds} seeds, without compile time",
        ["restarts", "top-1, median", "top-1, worst", "verdicts", "seconds", "over the first"],
        summarise(runs, oracle),
    )
    write_json(options.json, {"environment": environment, "data": data, "oracle": oracle, "runs": runs})
    return runs


if __name__ == "__main__":
    main()
