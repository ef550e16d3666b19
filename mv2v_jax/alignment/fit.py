"""The one driver of a fit: search several times, choose without a label, settle, polish, judge.

Each search tries the cheap way first, by clusters; where its evidence falls short, it also tries the harder way, by
independent components, and keeps the better of both.

`align`, `align_restarts`, the command line, the stability study and the benchmarks all run `fit`. They differ in the
`Run` they pass: `run.Inline` traces everything into one program, `runs.compiled` compiles stage by stage and reports
progress, `runs.chunked` keeps finished searches in files. A new stage of searching or settling is one more line in
`stages.py`. A new way of matching rows goes beside `ops/csls.py`; a stage calls it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.alignment.choose import choose
from mv2v_jax.alignment.estimate import Estimate
from mv2v_jax.alignment.polish import polish
from mv2v_jax.alignment.results import AlignInfo, AlignResult, Choice, Prepared, Search, Searched
from mv2v_jax.alignment.run import SEARCHING, SETTLING, Run
from mv2v_jax.alignment.score import Evidence, judge
from mv2v_jax.alignment.search_clusters import search_clusters
from mv2v_jax.alignment.search_components import guide, is_guided, search_components
from mv2v_jax.alignment.space import Space, Subspace, TwoSpaces, fit_space, hold_out, join_spaces, principal_subspace
from mv2v_jax.alignment.stages import SETTLING_STAGES, no_trajectory, refine, split_keys
from mv2v_jax.alignment.whitening import fit_whitening, map_from_cross, whiten_map
from mv2v_jax.config import Config
from mv2v_jax.data.padding import PaddedRows
from mv2v_jax.linear_map import LinearMap


def prepare(x: PaddedRows, y: PaddedRows, config: Config) -> Prepared:
    """Centre both spaces, hold rows out, and give both parts in the principal directions of the fitted ones."""
    source, target = fit_space(*x), fit_space(*y)
    fitted_x, held_out_x = hold_out(source.rows, config.held_out_rows)
    fitted_y, held_out_y = hold_out(target.rows, config.held_out_rows)
    fitted = TwoSpaces(x=fitted_x, y=fitted_y, seeds=join_spaces(source, target).seeds)
    subspace = principal_subspace(fitted, config.search_dims)
    return Prepared(
        source=source,
        target=target,
        fitted=subspace.project(fitted),
        held_out=subspace.project(TwoSpaces(x=held_out_x, y=held_out_y)),
        subspace=subspace,
    )


def has_second_search(config: Config) -> bool:
    """Whether a search by components follows where the evidence for one by clusters falls short."""
    return bool(config.components.num_runs and config.annealing.steps) and not config.published.is_used


@jax.jit
def _falls_short(evidence: Evidence, config: Config) -> jax.Array:
    """Whether the evidence for a search by clusters calls for one by components."""
    # The finest scale tells best whether clusters were enough; another one chooses best between two maps.
    closeness = evidence.closeness[-1]
    below = ~(closeness >= jnp.asarray(config.components.below, closeness.dtype))
    # Without held-out rows nothing tells the better one.
    return below & (evidence.num_rows > 0)


def search_once(run: Run, key: jax.Array, prepared: Prepared, config: Config) -> Searched:
    """One search: by clusters, and where the evidence falls short also by components; the better of both."""
    keys = split_keys(key)
    first = search_clusters(run, keys, prepared, config)
    if not has_second_search(config):
        return first
    return run.when(_falls_short(first.evidence, config), search_components, first, keys, prepared, config)


def search(run: Run, keys: jax.Array, x: PaddedRows, y: PaddedRows, config: Config) -> Search:
    """Search once for every one of ``keys [r]``, and choose."""
    prepared = run.call("preprocess", prepare, x, y, config)
    found = run.each(SEARCHING, search_once, keys, prepared, config)
    choice = run.call("choose", choose, found, prepared, config)
    return Search(prepared=prepared, found=found, choice=choice)


@jax.jit
def _number_at(place, num_settled, choice: Choice, used: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The search at one place of the order, and whether it is settled."""
    return choice.order[place], (place < num_settled) | used[choice.chosen]


def _settle_place(run: Run, place: jax.Array, num_settled, keys: jax.Array, searched: Search, config: Config):
    """Settle the search at one place of the order, if it is wanted: its `Estimate` and its trajectory, or infinity.

    The first ``num_settled`` are wanted. Second searches end at one of several maps that no evidence tells apart,
    though true pairs would; therefore at least ``components.num_settled`` are averaged there.
    """
    prepared = searched.prepared
    number, wanted = _number_at(place, num_settled, searched.choice, searched.found.components.used)
    rows = join_spaces(prepared.source, prepared.target)
    dtype = searched.found.estimate.matrix.dtype
    matrix = jnp.asarray(np.full((rows.x.shape[1], rows.y.shape[1]), np.inf, dtype))
    left_out = Estimate(matrix=matrix, is_map=False), no_trajectory(SETTLING_STAGES, rows.num_rows, config, dtype)
    return run.when(wanted, _settle_wanted, left_out, number, keys, searched, config)


def _settle_wanted(run: Run, _, number: jax.Array, keys: jax.Array, searched: Search, config: Config):
    return _settle_one(run, number, keys, searched, config)


def _settle_one(run: Run, number: jax.Array, keys: jax.Array, searched: Search, config: Config):
    """Settle the search of one number on all rows, in all directions: its `Estimate` and its trajectory."""
    found, prepared = jax.tree.map(lambda leaf: leaf[number], searched.found), searched.prepared
    estimate, stage_keys = found.estimate, split_keys(keys[number])
    if is_guided(prepared, config) and not estimate.is_map:
        estimate = run.when(~found.components.used, guide, estimate, stage_keys, prepared, config)
    extended = run.call("extend", _extend, estimate, prepared.subspace)
    return refine(run, stage_keys, SETTLING_STAGES, join_spaces(prepared.source, prepared.target), extended, config)


def _extend(estimate: Estimate, subspace: Subspace) -> Estimate:
    return dataclasses.replace(estimate, matrix=subspace.extend(estimate.matrix))


def average(estimates: Estimate, weights: jax.Array) -> Estimate:
    """Weighted mean of cross-covariances ``[s, d_x, d_y]``, best first; the first has weight 1.

    Those that are not finite are left out. Maps that found the same alignment differ by the noise of their draws, which
    averages out.
    """
    matrices = estimates.matrix
    finite = jnp.isfinite(matrices).all(axis=(1, 2))
    weights = jnp.where(finite, weights, 0)
    mean = jnp.einsum("s,sab->ab", weights, jnp.nan_to_num(matrices)) / jnp.where(finite[0], weights.sum(), 1)
    # If the first is not finite, it is returned unchanged.
    return dataclasses.replace(estimates, matrix=jnp.where(finite[0], mean, matrices[0]))


def max_settled(config: Config, num_restarts: int, num_settled: int) -> int:
    """Number of searches that are settled at most: ``num_settled``, and more where a second search gave the map."""
    at_least = config.components.num_settled if has_second_search(config) else 1
    return min(max(num_settled, at_least), num_restarts)


def num_averaged(num_settled: int, found: Searched) -> int:
    """Number of searches that are settled: 1 after a published refinement, because maps are not averaged."""
    return 1 if found.estimate.is_map else min(num_settled, found.estimate.matrix.shape[0])


def _weighted_map(estimate: Estimate, source: Space, target: Space, config: Config) -> jax.Array:
    """The map of the last estimate: weighted and partly whitened."""
    whitening_x, whitening_y = (fit_whitening(space.rows, config.whitening.power) for space in (source, target))
    if estimate.is_map:
        # A map has no correlations to weigh directions by.
        return whiten_map(estimate.as_map(project=config.published.project), whitening_x, whitening_y)
    return map_from_cross(estimate.matrix, whitening_x, whitening_y, config.whitening.reliability_power)


def _final_map(keys: jax.Array, searched: Search, estimate: Estimate, config: Config):
    """The map of the last estimate, and the trajectory of polishing it; a map of a published method is not polished."""
    source, target = searched.prepared.source, searched.prepared.target
    W = _weighted_map(estimate, source, target, config)
    if estimate.is_map or not config.polishing.steps:
        return W, {}
    key = split_keys(keys[searched.choice.chosen])["polish"]
    W, objective = polish(key, join_spaces(source, target), W, config=config)
    return W, {"polish": objective}


def finish(
    searched: Search, estimate: Estimate, W: jax.Array, trajectory: dict[str, jax.Array], config: Config
) -> AlignResult:
    """Judge and pack the map; ``trajectory`` is that of the stages after the search."""
    choice, source, target = searched.choice, searched.prepared.source, searched.prepared.target
    chosen = jax.tree.map(lambda leaf: leaf[choice.chosen], searched.found)
    rotation = estimate.as_map(project=config.published.project)
    gram = rotation @ rotation.T if rotation.shape[0] <= rotation.shape[1] else rotation.T @ rotation
    orthogonality = jnp.linalg.norm(gram - jnp.eye(gram.shape[0], dtype=W.dtype))
    judgement = judge(chosen.evidence, choice.with_others)
    return AlignResult(
        map=LinearMap(W=W, source=source.centering, target=target.centering),
        verdict=judgement.verdict,
        reason=judgement.reason,
        confidence=judgement.confidence,
        estimated_top1=judgement.estimated_top1,
        agreement=jnp.zeros_like(judgement.confidence) if choice.with_others is None else choice.with_others,
        evidence=chosen.evidence,
        trajectory={**chosen.trajectory, **trajectory},
        info=AlignInfo(
            anchors=chosen.anchors,
            components=chosen.components,
            zero_rows_x=source.zero_rows,
            zero_rows_y=target.zero_rows,
            orthogonality=orthogonality,
            all_finite=jnp.isfinite(W).all(),
        ),
    )


def settle(run: Run, keys: jax.Array, searched: Search, config: Config, num_settled: int = 1) -> AlignResult:
    """Settle the best of the searches, or the average of the best few, polish the map and judge it."""
    num_restarts, choice = keys.shape[0], searched.choice
    places = jnp.arange(num_averaged(max_settled(config, num_restarts, num_settled), searched.found))
    if len(places) <= num_settled:
        estimates, trajectories = run.each(SETTLING, _settle_one, choice.order[: len(places)], keys, searched, config)
    else:
        wanted = jnp.asarray(num_settled, places.dtype)
        estimates, trajectories = run.each(SETTLING, _settle_place, places, wanted, keys, searched, config)
    estimate, trajectory = jax.tree.map(lambda leaf: leaf[0], (estimates, trajectories))
    if len(places) > 1:
        estimate = run.call("average", average, estimates, choice.weights[choice.order[: len(places)]])
    W, polishing = run.call("polish", _final_map, keys, searched, estimate, config)
    return run.call("finish", finish, searched, estimate, W, {**trajectory, **polishing}, config)


def fit(
    run: Run, keys: jax.Array, x: PaddedRows, y: PaddedRows, config: Config, num_settled: int = 1
) -> tuple[AlignResult, Search]:
    """Search once per key, choose the best search without a label, settle it, polish its map and judge the result.

    Args:
        run: how the steps are carried out.
        keys: ``[r]`` random keys, one per restart. Each search depends on its own key alone.
        x: rows of the source, from `data.inputs.prepare_inputs`.
        y: rows of the target.
        config: a checked `Config`.
        num_settled: number of searches that are settled and averaged, at least; see ``components.num_settled``.

    Returns:
        `AlignResult`, and the `Search` it comes from.
    """
    searched = search(run, keys, x, y, config)
    return settle(run, keys, searched, config, num_settled), searched
