"""What a consensus of restarts is worth: the chosen restart alone, averaged with those that agree, and with all.

python -m benchmarks.consensus [--data DIR] [--source NAME --target NAME] [--rows 7600 --eval 1600] [--restarts 8]
    [--seeds 5] [--json FILE]

Every restart is searched and settled once; the methods differ in which of the settled cross-covariances are averaged,
and how. With each seed's table row comes how the restarts fell into basins.
"""

import argparse
import functools
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
    print_environment,
    print_requirement,
    print_table,
    write_json,
)
from mv2v_jax import PRESETS, Config
from mv2v_jax.alignment.fit import finish, prepare_search, settle
from mv2v_jax.alignment.restarts import average, choose, restart_keys, search_restarts
from mv2v_jax.alignment.space import fit_space
from mv2v_jax.data.padding import pad_rows
from mv2v_jax.evaluation.stability import find_basins

METHODS = ("chosen alone", "best two", "consensus", "all averaged")
# The consensus may be worse than the chosen one by so much, and must be better on average.
MOST_LOST = 0.005


@functools.partial(jax.jit, static_argnames="num_restarts")
def _settle_each_way(key, x, y, config: Config, num_restarts: int):
    space_x, space_y = fit_space(*x), fit_space(*y)
    rows = prepare_search(space_x, space_y, config=config)
    keys = restart_keys(key, 0, num_restarts)
    searches = search_restarts(keys, rows, config=config)
    choice = choose(searches, rows.x.fitted, config=config)

    def settle_one(index):
        return settle(keys[index], space_x, space_y, rows, searches.matrix[index], config=config)[0]

    settled = jax.lax.map(settle_one, choice.order)
    weights = choice.weights[choice.order]
    matrices = [settled[0], average(settled[:2], weights[:2]), average(settled, weights), settled.mean(axis=0)]
    chosen = jax.tree.map(lambda leaf: leaf[choice.chosen], searches)
    maps = [finish(space_x, space_y, matrix, chosen, {}, config=config).map for matrix in matrices]
    return maps, find_basins(choice.agreement)[1]


def compare(split: Split, num_restarts: int, seeds: int) -> list[dict[str, Any]]:
    """Top-1 of every method, and the sizes of the basins, one dict a seed."""
    config = PRESETS["default"]()
    x, y = (pad_rows(jnp.asarray(rows), config.max_rows) for rows in (split.x, split.y))
    runs = []
    for seed in range(seeds):
        maps, sizes = _settle_each_way(jax.random.key(seed), x, y, config, num_restarts)
        top1 = [evaluate(found, split)["top1"] for found in maps]
        basins = [int(size) for size in np.asarray(sizes) if size]
        runs.append({"seed": seed, "basins": basins, **dict(zip(METHODS, top1, strict=True))})
    return runs


def judge(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The two requirements on the consensus."""
    gains = [run["consensus"] - run["chosen alone"] for run in runs]
    mean = statistics.mean(gains)
    return [
        print_requirement(
            f"consensus at most {MOST_LOST} below the chosen restart: {min(gains):+.4f}", min(gains) >= -MOST_LOST
        ),
        print_requirement(f"consensus better than the chosen restart on average: {mean:+.4f}", mean > 0),
    ]


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the arguments, fit, print the table; returns one dict a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.restarts < 2:
        parser.error("--seeds must be at least 1 and --restarts at least 2")
    environment = print_environment()
    split, data = load_split(options)
    runs = compare(split, options.restarts, options.seeds)
    means = ["mean", *(f"{statistics.mean(run[name] for run in runs):.4f}" for name in METHODS), ""]
    print_table(
        f"top-1, {split.x.shape[0]:,} rows a side, {options.restarts} restarts",
        ["seed", *METHODS, "basins"],
        [
            [str(run["seed"]), *(f"{run[name]:.4f}" for name in METHODS), ", ".join(map(str, run["basins"]))]
            for run in runs
        ]
        + [means],
    )
    write_json(options.json, {"environment": environment, "data": data, "runs": runs, "requirements": judge(runs)})
    return runs


if __name__ == "__main__":
    main()
