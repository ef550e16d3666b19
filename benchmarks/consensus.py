"""Is the consensus of several restarts better than the best of them? The best, alone and averaged with others.

    python -m benchmarks.consensus [--data FOLDER] [--source NAME --target NAME] [--rows 7600 --eval 1600]
        [--restarts 8] [--seeds 5] [--json FILE]

The searches are the same in every column; the columns differ in how many of them are settled and averaged. "All
averaged" weighs all restarts alike, also those in another basin than the chosen one. The last column lists the sizes of
the basins that the restarts fell into.
"""

import dataclasses
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import (
    Split,
    add_data_options,
    evaluate,
    load_split,
    make_parser,
    print_environment,
    print_table,
    write_json,
)
from mv2v_jax import Config
from mv2v_jax.alignment.api import restart_keys
from mv2v_jax.alignment.fit import search, settle
from mv2v_jax.alignment.results import Search
from mv2v_jax.alignment.stage_by_stage import StageByStage
from mv2v_jax.data.inputs import prepare_inputs
from mv2v_jax.evaluation.stability import find_basins

METHODS = ("chosen alone", "best two", "consensus", "all averaged")


def weigh_alike(searched: Search) -> Search:
    """The same searches, each with the weight 1 in an average."""
    choice = dataclasses.replace(searched.choice, weights=jnp.ones_like(searched.choice.weights))
    return dataclasses.replace(searched, choice=choice)


def compare(split: Split, num_restarts: int, seeds: int) -> list[dict[str, Any]]:
    """Top-1 of every method and the sizes of the basins, one dict per seed."""
    # The first column is one map, after a second search as well.
    config = Config.preset("default").replace(components={"num_settled": 1})
    # One run for all seeds, which compiles each stage once.
    run = StageByStage(lambda name, done, total: None)
    runs = []
    for seed in range(seeds):
        key = jax.random.key(seed)
        keys = restart_keys(key, 0, num_restarts)
        searched = search(run, keys, *prepare_inputs(key, split.x, split.y, config), config)
        settled = [settle(run, keys, searched, config, number) for number in (1, 2, num_restarts)]
        settled.append(settle(run, keys, weigh_alike(searched), config, num_restarts))
        top1 = [evaluate(result.map, split)["top1"] for result in settled]
        basins = [int(size) for size in np.asarray(find_basins(searched.choice.agreement)[1]) if size]
        runs.append({"seed": seed, "basins": basins, **dict(zip(METHODS, top1, strict=True))})
    return runs


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Fit and print the table; returns one dict per seed."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--restarts", type=int, default=8, help="searches per seed (default: 8)")
    parser.add_argument("--seeds", type=int, default=5, help="number of random seeds (default: 5)")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.restarts < 2:
        parser.error("--seeds must be at least 1 and --restarts at least 2")
    environment = print_environment()
    split, data = load_split(options)
    runs = compare(split, options.restarts, options.seeds)
    means = ["mean", *(f"{statistics.mean(run[name] for run in runs):.4f}" for name in METHODS), ""]
    print_table(
        f"top-1, {split.x.shape[0]:,} rows per space, {options.restarts} restarts",
        ["seed", *METHODS, "basins"],
        [
            [str(run["seed"]), *(f"{run[name]:.4f}" for name in METHODS), ", ".join(map(str, run["basins"]))]
            for run in runs
        ]
        + [means],
    )
    gains = [run["consensus"] - run["chosen alone"] for run in runs]
    print(
        f"consensus less the chosen restart alone: {statistics.mean(gains):+.4f} on average, "
        f"{min(gains):+.4f} in the worst seed"
    )
    write_json(options.json, {"environment": environment, "data": data, "runs": runs})
    return runs


if __name__ == "__main__":
    main()
