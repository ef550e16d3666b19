"""Of what a map lacks, how much is lost by the search, and how much by settling?

    python -m benchmarks.shortfall --data FOLDER [--only NAME,...] [--seed 0] [--json FILE]

One search of the default preset is settled twice: from the map that it found, and from the map of the true pairs in the
same directions. Where both end alike, a better search would not help: settling leaves even a right map for one that
matches these rows better, because texts without a partner are matched with their neighbours. True pairs are used here
to measure only.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import (
    Split,
    add_folder_option,
    add_json_option,
    add_seed_option,
    check_folder,
    evaluate,
    evaluate_oracle,
    make_parser,
    print_environment,
    print_table,
    write_json,
)
from benchmarks.corpora import corpora
from benchmarks.generality import read_prefixes
from mv2v_jax import Config
from mv2v_jax.alignment.api import prepare_restarts, restart_keys
from mv2v_jax.alignment.estimate import Estimate
from mv2v_jax.alignment.fit import search, settle
from mv2v_jax.alignment.results import Prepared, Search
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.alignment.stage_by_stage import StageByStage
from mv2v_jax.ops.linalg import scale_to_norm
from mv2v_jax.ops.masked import center_unit

COLUMNS = ["data set", "seed", "oracle", "search, settled", "true pairs, settled", "lost by the search", "by settling"]


def estimate_from_pairs(split: Split, prepared: Prepared) -> Estimate:
    """The cross-covariance of the true pairs of the fitting rows, in the directions that were searched.

    Texts that have no partner are paired with rows of zeros, which add nothing.
    """
    x = center_unit(jnp.asarray(split.x), prepared.source.centering.mean)
    y = center_unit(jnp.asarray(split.y_true), prepared.target.centering.mean)
    pairs = prepared.subspace.project(TwoSpaces(x=x, y=y))
    cross = pairs.x.T @ pairs.y
    return Estimate(matrix=scale_to_norm(cross, min(cross.shape) ** 0.5), is_map=False)


def start_from(estimate: Estimate, searched: Search) -> Search:
    """The search as if it had found this estimate, which components need not correct."""
    found = searched.found
    components = dataclasses.replace(found.components, used=jnp.ones_like(found.components.used))
    one = dataclasses.replace(estimate, matrix=estimate.matrix[None])
    return dataclasses.replace(searched, found=dataclasses.replace(found, estimate=one, components=components))


def measure(split: Split, seed: int) -> dict[str, dict[str, float]]:
    """Scores of the oracle, of a fit with one restart, and of settling from the map of the true pairs."""
    key, config = jax.random.key(seed), Config.preset("default").replace(polishing={"steps": 0})
    x, y, _ = prepare_restarts(key, split.x, split.y, config, num_restarts=1)
    run, keys = StageByStage(lambda *_: None), restart_keys(key, 0, 1)
    searched = search(run, keys, x, y, config)
    right = start_from(estimate_from_pairs(split, searched.prepared), searched)
    return {
        "oracle": evaluate_oracle(split),
        "search": evaluate(settle(run, keys, searched, config).map, split),
        "pairs": evaluate(settle(run, keys, right, config).map, split),
    }


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure and print the table; returns all scores."""
    parser = make_parser(__doc__)
    add_folder_option(parser)
    parser.add_argument(
        "--only", type=read_prefixes, metavar="NAME,...", help="data sets whose names begin so (default: all)"
    )
    add_seed_option(parser)
    add_json_option(parser)
    options: argparse.Namespace = parser.parse_args(arguments)
    folder = check_folder(options.data)
    if folder is None:
        raise SystemExit("these data sets are not bundled: name their folder with --data")
    environment = print_environment()
    prefixes = tuple(options.only or [""])
    found, table = [], []
    for corpus in (corpus for corpus in corpora() if corpus.name.startswith(prefixes)):
        scores = measure(corpus.build(folder), options.seed)
        found.append({"data": corpus.name, "seed": options.seed, **scores})
        oracle, searched, right = (scores[name]["top1"] for name in ("oracle", "search", "pairs"))
        lost = (right - searched, oracle - right)
        table.append([corpus.name, str(options.seed), *(f"{value:.3f}" for value in (oracle, searched, right, *lost))])
        print(" ".join(table[-1]), flush=True)
    print_table("top-1 of one search, and what it lacks", COLUMNS, table)
    if options.json:
        write_json(options.json, {"environment": environment, "fits": found})
    return found


if __name__ == "__main__":
    main()
