"""The second search, by independent components, and their vote on a map that clusters led to."""

import dataclasses

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.choose import order_by_score
from mv2v_jax.alignment.components import (
    MIN_GUIDED_ROWS,
    ComponentRuns,
    estimate_from_runs,
    run_components,
    vote_again,
    vote_from,
)
from mv2v_jax.alignment.estimate import Estimate
from mv2v_jax.alignment.refine_annealed import refine_by_region, region_pass
from mv2v_jax.alignment.results import ComponentsInfo, Prepared, Searched
from mv2v_jax.alignment.run import Run
from mv2v_jax.alignment.search_clusters import gather_held_out
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.alignment.stages import REFINE_BY_REGION, REFINE_GUIDED, Keys, refine
from mv2v_jax.config import Config
from mv2v_jax.ops.pytree import pytree


def search_components(run: Run, first: Searched, keys: Keys, prepared: Prepared, config: Config) -> Searched:
    """Search again, by independent components, and return the better search of both.

    All runs vote on a map. The runs are also divided into groups that vote on maps of their own, because one group can
    find what all together miss. The held-out rows choose the best map, which is refined further.
    """
    rows, settings = prepared.fitted, config.components
    _, runs = run.scan("components", _some_runs, None, settings.num_runs, keys["components"], rows, config)
    num_starts = 1 + (settings.num_groups if settings.num_groups > 1 else 0)
    draws = keys["refine_components"], keys["evidence"]
    _, starts = run.scan("component starts", _some_starts, None, num_starts, *draws, runs, prepared, config)
    start = run.call("best start", _best_start, starts)
    estimate, _ = refine(run, keys, (REFINE_BY_REGION,), rows, start.estimate, config)
    evidence = run.call("evidence", gather_held_out, keys["evidence"], prepared, estimate, config)
    # The trajectory stays that of the first search: a program has one shape of results, whichever search is better.
    found = dataclasses.replace(first, estimate=estimate, evidence=evidence)
    return run.call("better search", _better_search, first, found, start.agreement)


def _some_runs(_, numbers: jax.Array, key: jax.Array, rows: TwoSpaces, config: Config) -> tuple[None, ComponentRuns]:
    return None, run_components(key, rows, config=config.components, runs=numbers)


@pytree
class _Start:
    """The map that runs have voted for: its `Estimate`, its score, and the median agreement of the runs."""

    estimate: Estimate
    score: jax.Array
    agreement: jax.Array


def _some_starts(
    _,
    numbers: jax.Array,
    refine_key: jax.Array,
    evidence_key: jax.Array,
    runs: ComponentRuns,
    prepared: Prepared,
    config: Config,
) -> tuple[None, _Start]:
    """`_Start` of some votes: number 0 is that of all runs, the others are those of the groups."""
    rows, settings = prepared.fitted, config.components
    # Neighbouring runs differ in their numbers of axes and contrasts, so that a group takes a whole neighbourhood.
    place = jnp.arange(settings.num_runs) * settings.num_groups // settings.num_runs

    def start_of(number):
        is_member = (number == 0) | (place == number - 1)

        def only_members(runs):
            return dataclasses.replace(runs, cross=jnp.where(is_member[:, None, None], runs.cross, 0))

        def vote(_, voting):
            return only_members(vote_again(voting, config=settings))

        estimate, agreement = estimate_from_runs(jax.lax.fori_loop(0, settings.rounds, vote, only_members(runs)), rows)
        start_key = jax.random.fold_in(refine_key, number)
        steps = jnp.arange(region_pass(config))
        estimate = refine_by_region(start_key, rows, estimate, config=config, steps=steps).estimate
        score = gather_held_out(evidence_key, prepared, estimate, config).score
        # Runs without a vote agree with nothing.
        agreement = jnp.nanmedian(jnp.where(is_member, agreement, jnp.nan))
        return _Start(estimate=estimate, score=score, agreement=agreement)

    return None, jax.lax.map(start_of, numbers)


def _best_start(starts: _Start) -> _Start:
    best = order_by_score(starts.score)[0]
    return jax.tree.map(lambda leaf: leaf[best], starts)


def _better_search(first: Searched, second: Searched, agreement: jax.Array) -> Searched:
    # A map that is not finite has no score, and replaces no other one.
    used = (second.evidence.score > first.evidence.score) | ~jnp.isfinite(first.evidence.score)
    better = jax.tree.map(lambda a, b: jnp.where(used, b, a), first, second)
    info = ComponentsInfo(tried=jnp.ones((), bool), used=used, agreement=agreement)
    return dataclasses.replace(better, components=info)


def is_guided(prepared: Prepared, config: Config) -> bool:
    """Whether components vote on the chosen map, which needs many rows; known pairs guide better than components."""
    is_wanted = bool(config.components.num_runs and config.components.guided_runs)
    return is_wanted and prepared.fitted.num_rows >= MIN_GUIDED_ROWS and prepared.fitted.seeds is None


def guide(run: Run, estimate: Estimate, keys: Keys, prepared: Prepared, config: Config) -> Estimate:
    """Correct a map that clusters led to: independent components vote with the map as a guide.

    A map can be right in most regions and wrong in some, where its own nearest rows confirm it. The relations between
    independent components do not depend on it.
    """
    rows = prepared.fitted
    shorter = config.replace(components={"ica_steps": config.components.guided_ica_steps})
    _, runs = run.scan("components", _some_runs, None, config.components.guided_runs, keys["guide"], rows, shorter)
    estimate = run.call("components and map", _guided_estimate, runs, rows, estimate, config)
    return refine(run, keys, (REFINE_GUIDED,), rows, estimate, config)[0]


def _guided_estimate(runs: ComponentRuns, rows: TwoSpaces, estimate: Estimate, config: Config) -> Estimate:
    return estimate_from_runs(vote_from(runs, rows, estimate, config=config.components), rows)[0]
