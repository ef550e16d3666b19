"""How long a fit takes, stage by stage, beside the published method in the same process, with quality beside it.

python -m benchmarks.speed [--data DIR] [--rows N --eval E] [--presets fast,default] [--repeats 3] [--skip-reference]
    [--json FILE]
"""

import argparse
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
    compile_seconds,
    evaluate,
    format_scores,
    load_split,
    print_environment,
    print_requirement,
    print_table,
    steady_seconds,
    write_json,
)
from benchmarks.work import Work, count_work
from mv2v_jax import PRESETS, AlignResult, Config, align
from mv2v_jax.alignment.anchors import match_anchor_sets
from mv2v_jax.alignment.fit import (
    REFINEMENTS,
    SETTLING,
    Refinement,
    finish,
    initial_map,
    lift_search,
    prepare_search,
    split_keys,
    weigh,
)
from mv2v_jax.alignment.space import fit_space
from mv2v_jax.data.padding import pad_rows
from mv2v_jax.ops.qap import Assignment, centered_kernel, search_assignment, search_from

# What part of the reference's time a preset may take, and what part is its goal.
MOST_OF_REFERENCE = {"fast": (15, 40), "default": (5, 10), "notebook": (3, 3)}
MOST_COMPILE_SECONDS = 15.0
# Starts of one search, as the project's goal for it is stated.
SEARCH_STARTS = 1_000

Times = dict[str, dict[str, float]]


def time_stages(
    key: jax.Array, split: Split, config: Config, repeats: int, on_work: Callable[[str, Work], Any] | None = None
) -> tuple[Times, AlignResult]:
    """Compile and steady seconds of every stage, each compiled by itself and fed by those before; and the result.

    ``on_work`` is told the name of every stage and the work it has to do.
    """
    times: Times = {}

    def timed(name: str, stage: Callable[..., Any], *args: Any) -> Any:
        compiled, compiling = compile_seconds(stage, *args)
        result, steady = steady_seconds(compiled, *args, repeats=repeats)
        times[name] = {"compile": compiling, "steady": steady}
        if on_work is not None:
            on_work(name, count_work(stage, *args))
        return result

    def preprocess(x, y, config):
        spaces = fit_space(*x), fit_space(*y)
        return spaces, prepare_search(*spaces, config=config)

    def anchors(key, x, y, config):
        return match_anchor_sets(key, x, y, config=config)

    def first(key, x, y, sets, config):
        return initial_map(key, x, y, sets, config=config)

    def evidence(key, rows, matrix, trajectory, sets, anchors, config):
        return weigh(key, rows, matrix, trajectory, sets, anchors, config=config)

    def last(space_x, space_y, matrix, searched, trajectory, config):
        return finish(space_x, space_y, matrix, searched, trajectory, config=config)

    def refine(stages: tuple[Refinement, ...], x, y, matrix):
        trajectory = {}
        for name, num_steps, run in stages:
            if num_steps(config, min(x.shape[0], y.shape[0])):

                def all_steps(key, x, y, matrix, config, run=run):
                    return run(key, x, y, matrix, config=config)

                refined = timed(name, all_steps, getattr(keys, name), x, y, matrix, config)
                matrix, trajectory[name] = refined.matrix, refined.objective
        return matrix, trajectory

    keys = split_keys(key)
    x, y = (pad_rows(rows, config.max_rows) for rows in (split.x, split.y))
    (space_x, space_y), seen = timed("preprocess", preprocess, x, y, config)
    fitted = seen.x.fitted, seen.y.fitted
    sets = timed("anchor sets", anchors, keys.anchors, *fitted, config)
    matrix, found = timed("initial map", first, keys.matching, *fitted, sets, config)
    matrix, trajectory = refine(REFINEMENTS, *fitted, matrix)
    searched = timed("evidence", evidence, keys.evidence, seen, matrix, trajectory, sets, found, config)
    matrix, trajectory = refine(SETTLING, space_x.rows, space_y.rows, lift_search(matrix, seen))
    result = timed("finish", last, space_x, space_y, matrix, searched, trajectory, config)
    return times, result


def time_whole(key: jax.Array, split: Split, config: Config, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Compile and steady seconds of `align` in one call, and the scores of its map."""
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)
    compiled, compiling = compile_seconds(align, key, x, y, config)
    result, steady = steady_seconds(compiled, key, x, y, config, repeats=repeats)
    return {"compile": compiling, "steady": steady}, evaluate(result.map, split)


def search_random_starts(
    key: jax.Array, kx: jax.Array, ky: jax.Array, *, num_starts: int, num_steps: int
) -> Assignment:
    """`search_assignment` from random permutations: what its own starts cost and gain."""

    def search(key):
        start_key, tenure_key = jax.random.split(key)
        start = jax.random.permutation(start_key, jnp.arange(kx.shape[0], dtype=jnp.int32))
        return search_from(tenure_key, kx, ky, start, num_steps=num_steps)

    found = jax.vmap(search)(jax.random.split(key, num_starts))
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
    """Seconds of the assignment search alone over all anchor sets, and the objective of each."""

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

    The objectives, one per anchor set, become their mean and their share of the best seen for that set.
    """
    num_sets, num_clusters = clustered.x.shape[:2]
    config = PRESETS["notebook"]()
    for num_starts, num_steps, kind, run in (
        (config.num_starts, config.search_steps, "", search_assignment),
        # As many swaps as clusters are about a descent to the first local optimum, where the starts matter most.
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
    columns = ["search", "compile s", "steady s", "mean objective", "share of best seen", "lowest share"]
    print_table(f"the assignment search alone: {num_sets} sets of {num_clusters} clusters", columns, rows)
    return found


def judge(name: str, whole: Times, scores: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Hold a preset against what is required of its time; ``None`` where the reference was left out."""
    found = []
    if name in MOST_OF_REFERENCE:
        required, goal = MOST_OF_REFERENCE[name]
        text = f"{name}: steady at most 1/{required} of the reference, goal 1/{goal}, at its top-1 or above: "
        passed = None
        if "reference" in whole:
            times = whole["reference"]["steady"] / whole[name]["steady"]
            ours, published = scores[name]["top1"], scores["reference"]["top1"]
            text += f"1/{times:.1f}, {ours:.3f} for {published:.3f}"
            passed = times >= required and ours >= published
        found.append(print_requirement(text, passed))
    compiling = whole[name]["compile"]
    text = f"{name}: compiled in {MOST_COMPILE_SECONDS:g} s on CPU: {compiling:.1f} s"
    on_cpu = jax.default_backend() == "cpu"
    found.append(print_requirement(text, compiling <= MOST_COMPILE_SECONDS if on_cpu else None))
    return found


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the arguments, time everything, print the tables; returns the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    add_preset_option(parser, ["fast", "default"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="steady calls, of which the median counts")
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
        stages[name], _ = time_stages(key, split, PRESETS[name](), options.repeats)
        whole[name], scores[name] = time_whole(key, split, PRESETS[name](), options.repeats)

    for name, times in stages.items():
        rows = [
            [stage, f"{time['compile']:.2f}" if "compile" in time else "", f"{time['steady']:.2f}"]
            for stage, time in [*times.items(), ("the whole in one call", whole[name])]
        ]
        print_table(name, ["stage", "compile s", "steady s"], rows)
    rows = [
        [
            name,
            f"{time['compile']:.1f}" if "compile" in time else "",
            f"{time['steady']:.2f}",
            *format_scores(scores[name]),
        ]
        for name, time in whole.items()
    ]
    print_table("the whole fit", ["method", "compile s", "steady s", *METRICS], rows)

    if not kept:
        rows_x, rows_y = (reference.preprocess(rows)[0] for rows in (split.x, split.y))
        rng = np.random.default_rng(options.seed)
        kept["clustering"] = reference.cluster_sets(rows_x, rows_y, rng, reference.Settings())
    compare_searches(key, kept["clustering"], searches, options.repeats)

    print()
    verdicts = [verdict for name in options.presets for verdict in judge(name, whole, scores)]
    record = {"whole": whole, "stages": stages, "scores": scores, "searches": searches, "requirements": verdicts}
    write_json(options.json, {"environment": environment, "data": data, **record})
    return verdicts


if __name__ == "__main__":
    main()
