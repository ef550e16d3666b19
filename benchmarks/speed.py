"""How long does a fit take, stage by stage, beside the published method in the same process?

    python -m benchmarks.speed [--data FOLDER] [--rows N --eval E] [--presets fast,default] [--repeats 3]
        [--skip-reference] [--json FILE]

The quality of both is printed as well. The assignment search is also timed alone, beside SciPy's 2-opt.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import reference
from benchmarks.common import (
    METRICS,
    Split,
    add_data_options,
    add_preset_option,
    add_repeats_option,
    add_seed_option,
    compile_seconds,
    evaluate,
    format_scores,
    load_split,
    make_parser,
    print_environment,
    print_table,
    steady_seconds,
    write_json,
)
from benchmarks.stages import Stage, run_stages
from mv2v_jax import Config, align
from mv2v_jax.ops.qap import Assignment, centered_kernel, draw_tenures, search_assignment, search_from

# Starts of the assignment searches that show whether more starts help.
SEARCH_STARTS = 1_000

Times = dict[str, dict[str, float]]


def stage_times(stages: dict[str, Stage]) -> Times:
    """Compile and steady seconds by stage."""
    return {name: {"compile": stage.compile_seconds, "steady": stage.seconds} for name, stage in stages.items()}


def time_whole(key: jax.Array, split: Split, config: Config, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Compile and steady seconds of `align` in one call, and the scores of its map."""
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)
    compiled, compiling = compile_seconds(align, key, x, y, config)
    result, steady = steady_seconds(compiled, key, x, y, config, repeats=repeats)
    return {"compile": compiling, "steady": steady}, evaluate(result.map, split)


def search_random_starts(
    key: jax.Array, kx: jax.Array, ky: jax.Array, *, num_starts: int, num_steps: int
) -> Assignment:
    """`search_assignment` from random permutations instead of its own starts."""

    def search(key, tenures):
        start = jax.random.permutation(key, jnp.arange(kx.shape[0], dtype=jnp.int32))
        return search_from(tenures, kx, ky, start)

    start_key, tenure_key = jax.random.split(key)
    tenures = draw_tenures(tenure_key, len(kx), num_starts, num_steps)
    found = jax.vmap(search)(jax.random.split(start_key, num_starts), tenures)
    best = jnp.argmax(found.objective)
    return jax.tree.map(lambda values: values[best], found)


def time_search(
    key: jax.Array,
    clustered: reference.AnchorSets,
    num_starts: int,
    num_steps: int,
    repeats: int,
    run: Callable[..., Assignment] = search_assignment,
) -> dict[str, Any]:
    """Seconds of the assignment search alone over all anchor sets, and its objective for each set."""

    def search(key, centers_x, centers_y):
        def one(key, centers_x, centers_y):
            kernels = centered_kernel(centers_x), centered_kernel(centers_y)
            return run(key, *kernels, num_starts=num_starts, num_steps=num_steps).objective

        return jax.vmap(one)(jax.random.split(key, centers_x.shape[0]), centers_x, centers_y)

    args = key, jnp.asarray(clustered.x), jnp.asarray(clustered.y)
    compiled, compiling = compile_seconds(search, *args)
    objective, steady = steady_seconds(compiled, *args, repeats=repeats)
    return {"compile": compiling, "steady": steady, "objective": np.asarray(objective)}


def compare_searches(
    key: jax.Array, clustered: reference.AnchorSets, found: dict[str, dict[str, Any]], repeats: int
) -> dict[str, dict[str, Any]]:
    """Add our searches to ``found`` and print the table.

    The objectives, one per anchor set, become their mean and their share of the best objective of any search.
    """
    num_sets, num_clusters = clustered.x.shape[:2]
    config = Config.preset("notebook").anchors
    for num_starts, num_steps, kind, run in (
        (config.num_starts, config.search_steps, "", search_assignment),
        # A descent to the first local optimum takes about one swap per cluster. There the starts matter most.
        (SEARCH_STARTS, num_clusters, "", search_assignment),
        (SEARCH_STARTS, num_clusters, "random ", search_random_starts),
        (SEARCH_STARTS, config.search_steps, "", search_assignment),
    ):
        name = f"{num_starts:,} {kind}starts, {num_steps} swaps"
        found[name] = time_search(key, clustered, num_starts, num_steps, repeats, run)
    best = np.max([times["objective"] for times in found.values()], axis=0)
    rows = []
    for name, times in found.items():
        objective = times.pop("objective")
        share = objective / best
        times |= {"mean_objective": float(objective.mean()), "mean_share": float(share.mean())}
        times["lowest_share"] = float(share.min())
        compiling = f"{times['compile']:.2f}" if "compile" in times else ""
        figures = (times["mean_objective"], times["mean_share"], times["lowest_share"])
        rows.append([name, compiling, f"{times['steady']:.3f}", *(f"{figure:.4f}" for figure in figures)])
    columns = ["search", "compile s", "steady s", "mean objective", "mean share of best", "lowest share of best"]
    print_table(f"the assignment search alone: {num_sets} sets of {num_clusters} clusters", columns, rows)
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Time everything and print the tables; returns the figures."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    add_preset_option(parser, ["fast", "default"])
    add_seed_option(parser)
    add_repeats_option(parser)
    parser.add_argument("--skip-reference", action="store_true", help="leave out the published method")
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    key = jax.random.key(options.seed)

    kept: dict[str, reference.AnchorSets] = {}

    def keep(name: str, _: float, result: object) -> None:
        if isinstance(result, reference.AnchorSets):
            kept[name] = result

    whole: Times = {}
    scores: dict[str, dict[str, float]] = {}
    searches: dict[str, dict[str, Any]] = {}
    stages: dict[str, Times] = {}
    if not options.skip_reference:
        linear_map, seconds = reference.fit(split.x, split.y, options.seed, keep)
        stages["reference"] = {name: {"steady": value} for name, value in seconds.items()}
        whole["reference"] = {"steady": sum(seconds.values())}
        scores["reference"] = evaluate(linear_map, split)
        starts = reference.Settings().num_starts
        searches[f"SciPy 2-opt, {starts} starts"] = {
            "steady": seconds["assignment"],
            "objective": kept["assignment"].objective,
        }
    for name in options.presets:
        config = Config.preset(name)
        stages[name] = stage_times(run_stages(key, split, config, options.repeats)[0])
        whole[name], scores[name] = time_whole(key, split, config, options.repeats)

    for name, times in stages.items():
        rows = [
            [stage, f"{time['compile']:.2f}" if "compile" in time else "", f"{time['steady']:.2f}"]
            for stage, time in [*times.items(), ("the whole in one call", whole[name])]
        ]
        print_table(name, ["stage", "compile s", "steady s"], rows)
    slowest = whole.get("reference")
    rows = [
        [
            name,
            f"{time['compile']:.1f}" if "compile" in time else "",
            f"{time['steady']:.2f}",
            f"1/{slowest['steady'] / time['steady']:.1f}" if slowest else "",
            *format_scores(scores[name]),
        ]
        for name, time in whole.items()
    ]
    print_table("the whole fit", ["method", "compile s", "steady s", "of the reference", *METRICS], rows)

    if not kept:
        rows_x, rows_y = (reference.preprocess(rows)[0] for rows in (split.x, split.y))
        rng = np.random.default_rng(options.seed)
        kept["clustering"] = reference.cluster_sets(rows_x, rows_y, rng, reference.Settings())
    compare_searches(key, kept["clustering"], searches, options.repeats)

    record = {"whole": whole, "stages": stages, "scores": scores, "searches": searches}
    record |= {"environment": environment, "data": data}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
