"""The one driver of a fit: search several times, choose without a label, settle, judge.

Each search tries the cheap way first, by clusters; where its evidence falls short, it also tries the harder way, by
independent components, and keeps the better of both.

`align`, `align_restarts`, the command line, the stability study and the benchmarks all run `fit`. They differ in the
`Run` they pass: `Inline` traces everything into one program, `runs.compiled` compiles stage by stage and reports
progress, `runs.chunked` keeps finished searches in files. A new stage is one more line in `SEARCH_STAGES` or
`SETTLING_STAGES`. A new way of matching rows goes beside `ops/csls.py`; a stage calls it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.anchors import AnchorInfo, AnchorSets, match_anchor_sets, select_anchors
from mv2v_jax.alignment.components import (
    MIN_GUIDED_ROWS,
    ComponentRuns,
    estimate_from_runs,
    run_components,
    vote_again,
    vote_from,
)
from mv2v_jax.alignment.estimate import Estimate, Refined
from mv2v_jax.alignment.match_relative import first_estimate
from mv2v_jax.alignment.refine_annealed import (
    again_steps,
    annealing_length,
    guided_steps,
    refine_annealed,
    refine_annealed_again,
    refine_by_region,
    refine_csls,
    refine_guided,
    refine_whole,
    region_pass,
    region_steps,
)
from mv2v_jax.alignment.refine_published import refine_clusters, refine_matching
from mv2v_jax.alignment.score import Evidence, Reason, Verdict, fine_agreement, gather_evidence, judge
from mv2v_jax.alignment.space import (
    Space,
    Subspace,
    TwoSpaces,
    fit_space,
    hold_out,
    join_spaces,
    principal_subspace,
)
from mv2v_jax.alignment.whitening import fit_whitening, map_from_cross, whiten_map
from mv2v_jax.config import Config
from mv2v_jax.data.padding import PaddedRows
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.linalg import cosines
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sharding import RESTART, all_gather, shard

T = TypeVar("T")

# ------------------------------------------------------------------------------------------------------------- results


@pytree
class ComponentsInfo:
    """Whether a search went on to independent components. Scalars.

    Attributes:
        tried: bool, whether the closeness after matching clusters fell short of ``components.below``.
        used: bool, whether the components gave the better map.
        agreement: median agreement of each run with the others of its group, from -1 to 1; 0 where they were not
            tried. Wrong maps can agree as well.
    """

    tried: jax.Array
    used: jax.Array
    agreement: jax.Array


@pytree
class AlignInfo:
    """What happened on the way to a map. Arrays only; lengths follow from the config.

    Attributes:
        anchors: `AnchorInfo`, each field ``[num_sets]``.
        components: `ComponentsInfo`.
        zero_rows_x: int32 scalar, zero rows of X; they take no part.
        zero_rows_y: int32 scalar, zero rows of Y.
        orthogonality: scalar, ``||W W^T - I||_F`` of the smaller side before directions are weighted: 0 where the map
            was projected.
        all_finite: bool scalar, whether every entry of the map is finite.
    """

    anchors: AnchorInfo
    components: ComponentsInfo
    zero_rows_x: jax.Array
    zero_rows_y: jax.Array
    orthogonality: jax.Array
    all_finite: jax.Array


@pytree
class AlignResult:
    """What `align` returns.

    Attributes:
        map: the `LinearMap`.
        verdict: int32 scalar, a `Verdict`.
        reason: int32 scalar, a `Reason`: what decided the verdict.
        confidence: calibrated probability, from 0 to 1, that true pairs would have a FOSCTTM below 0.05.
        estimated_top1: estimate of the top-1 that true pairs would give among 2,000 rows; `estimate_recall` estimates
            others.
        agreement: median agreement of the map with those of other restarts, see `fine_agreement`; 0 without others.
        evidence: `Evidence` from held-out rows; its score is comparable between runs on the same data, whatever their
            config, and higher is better.
        trajectory: per stage name, the stage's own label-free objective at every step: mean similarity of the rows
            with their pseudo-partners. The stages of the search by clusters and of settling.
        info: `AlignInfo`.
    """

    map: LinearMap
    verdict: jax.Array
    reason: jax.Array
    confidence: jax.Array
    estimated_top1: jax.Array
    agreement: jax.Array
    evidence: Evidence
    trajectory: dict[str, jax.Array]
    info: AlignInfo

    def __repr__(self) -> str:
        d_x, d_y = self.map.W.shape[-2:]
        if isinstance(self.verdict, jax.core.Tracer) or self.verdict.ndim:
            return f"AlignResult(map [{d_x}, {d_y}], verdict {self.verdict.dtype}{list(self.verdict.shape)})"
        steps = ", ".join(f"{name} {values.shape[-1]}" for name, values in self.trajectory.items())
        return (
            f"AlignResult: {Verdict(int(self.verdict)).name}, confidence {float(self.confidence):.2f}, "
            f"estimated top-1 {float(self.estimated_top1):.2f}\n"
            f"  reason: {Reason(int(self.reason)).name.replace('_', ' ')}\n"
            f"  map: {d_x} to {d_y} dimensions\n"
            f"  score: {float(self.evidence.score):.3f} on {int(self.evidence.num_rows):,} held-out rows per side\n"
            f"  steps: {steps or 'none'}"
        )


@pytree
class Searched:
    """The result of one search on the fitted rows, before it is settled.

    Attributes:
        estimate: `Estimate` between the coordinates of the subspace that was searched, ``[r_x, r_y]``.
        evidence: `Evidence` of it from the held-out rows.
        trajectory: per stage of the search by clusters, its label-free objective at every step.
        anchors: `AnchorInfo`.
        components: `ComponentsInfo`.
    """

    estimate: Estimate
    evidence: Evidence
    trajectory: dict[str, jax.Array]
    anchors: AnchorInfo
    components: ComponentsInfo


@pytree
class Choice:
    """Which of several searches is kept, and the weight of each in a consensus.

    Attributes:
        chosen: int32 scalar, the search of the best score.
        order: ``[r]`` int32, all searches by their score, the chosen one first.
        weights: ``[r]``, square of the agreement of each search with the chosen one; 0 if that is negative. Searches
            that found another alignment hardly count.
        agreement: ``[r, r]``, `fine_agreement` of every two restarts.
        with_others: scalar, median agreement of the chosen search with the others; ``None`` for a single search.
    """

    chosen: jax.Array
    order: jax.Array
    weights: jax.Array
    agreement: jax.Array
    with_others: jax.Array | None


@pytree
class Prepared:
    """Both spaces, and what a search sees of them.

    Attributes:
        source: `Space` of all rows of X.
        target: `Space` of all rows of Y.
        fitted: the rows a search is fitted on, in the coordinates of ``subspace``.
        held_out: the rows it is scored on, in the same coordinates.
        subspace: `Subspace` of the directions a search sees.
    """

    source: Space
    target: Space
    fitted: TwoSpaces
    held_out: TwoSpaces
    subspace: Subspace


@pytree
class Search:
    """All searches of a fit.

    Attributes:
        prepared: `Prepared`.
        found: `Searched` of every restart, each leaf ``[r, ...]``.
        choice: `Choice` among them.
    """

    prepared: Prepared
    found: Searched
    choice: Choice


# ---------------------------------------------------------------------------------------------------------------- runs


class Run(Protocol):
    """How the steps of a fit are carried out. Functions get everything they use as arguments."""

    def call(self, name: str, fun: Callable[..., Any], *args: Any) -> Any:
        """``fun(*args)``."""

    def scan(self, name: str, fun: Callable[..., Any], carry: Any, num_steps: int, *args: Any) -> Any:
        """``fun(carry, steps, *args) -> (carry, outputs)`` for all steps; outputs are ``[num_steps, ...]``."""

    def each(self, name: str, fun: Callable[..., Any], items: jax.Array, *shared: Any) -> Any:
        """``fun(run, item, *shared)`` for each of ``items [r]``; results are ``[r, ...]``."""

    def when(self, needed: jax.Array, fun: Callable[..., T], otherwise: T, *args: Any) -> T:
        """``fun(run, otherwise, *args)`` where the bool scalar ``needed`` is true, otherwise ``otherwise``."""


@dataclasses.dataclass(frozen=True)
class Inline:
    """Carries out every step where it stands, for a fit that is traced as one program.

    Attributes:
        batch_size: number of searches that run side by side on each device; ``None`` traces a single restart without
            any loop.
    """

    batch_size: int | None = None

    def call(self, name: str, fun: Callable[..., Any], *args: Any) -> Any:
        return fun(*args)

    def scan(self, name: str, fun: Callable[..., Any], carry: Any, num_steps: int, *args: Any) -> Any:
        return fun(carry, jnp.arange(num_steps), *args)

    def each(self, name: str, fun: Callable[..., Any], items: jax.Array, *shared: Any) -> Any:
        """Over a mesh's restart axis each device has its share of the items."""
        if self.batch_size is None and items.shape[0] == 1:
            return jax.tree.map(lambda leaf: leaf[None], fun(self, items[0], *shared))
        mine = items[shard(jnp.arange(items.shape[0]), RESTART)]
        # Settling holds all rows of both spaces, so it runs for one restart after the other.
        # A batch of one would turn the condition of `when` into a choice between two results that are both computed.
        batch_size = self.batch_size if name == SEARCHING and self.batch_size != 1 else None
        found = jax.lax.map(lambda item: fun(self, item, *shared), mine, batch_size=batch_size)
        return all_gather(found, RESTART, items.shape[0])

    def when(self, needed: jax.Array, fun: Callable[..., T], otherwise: T, *args: Any) -> T:
        """Restarts side by side are computed both ways."""
        return jax.lax.cond(needed, lambda *operands: fun(self, *operands), lambda first, *_: first, otherwise, *args)


SEARCHING, SETTLING = "restart", "settling"


# -------------------------------------------------------------------------------------------------------------- stages


class Stage(NamedTuple):
    """One refinement stage.

    Attributes:
        name: also the name of its key and of its objective in a trajectory.
        num_steps: its steps, by the rows of the smaller space and the config.
        run: ``run(key, rows, estimate, *, config, steps) -> Refined``.
    """

    name: str
    num_steps: Callable[[int, Config], int]
    run: Callable[..., Refined]

    def advance(self, estimate: Estimate, steps: jax.Array, key: jax.Array, rows: TwoSpaces, config: Config):
        refined = self.run(key, rows, estimate, config=config, steps=steps)
        return refined.estimate, refined.objective


# In their order. All of them see the fitted rows only.
SEARCH_STAGES = (
    Stage("refine_matching", lambda num_rows, config: config.published.match_steps, refine_matching),
    Stage("refine_clusters", lambda num_rows, config: config.published.cluster_steps, refine_clusters),
    Stage("refine_annealed", annealing_length, refine_annealed),
)
# After the components have voted with the map as a guide.
REFINE_GUIDED = Stage("refine_guided", guided_steps, refine_guided)
# From the best map that groups of components voted for.
REFINE_BY_REGION = Stage("refine_by_region", region_steps, refine_by_region)
# These see all rows, the held-out ones among them: the evidence has been gathered by then.
SETTLING_STAGES = (
    Stage("refine_annealed_again", again_steps, refine_annealed_again),
    Stage("refine_csls", lambda num_rows, config: config.settling.steps, refine_csls),
    Stage("refine_whole", lambda num_rows, config: config.settling.whole_steps, refine_whole),
)
# One key each, by place: reordering them changes every fit.
_KEY_NAMES = (
    "anchors",
    "relative",
    "refine_matching",
    "refine_clusters",
    "refine_annealed",
    "refine_annealed_again",
    "refine_csls",
    "refine_whole",
    "evidence",
    "components",
    "refine_components",
    "guide",
    "refine_guided",
    "refine_by_region",
)


def split_keys(key: jax.Array) -> dict[str, jax.Array]:
    """One key per stage that draws, by name."""
    return dict(zip(_KEY_NAMES, jax.random.split(key, len(_KEY_NAMES)), strict=True))


def refine(run: Run, key: jax.Array, stages: tuple[Stage, ...], rows: TwoSpaces, estimate: Estimate, config: Config):
    """Run the stages that have steps, one after the other: the last `Estimate`, and each one's objective by name."""
    keys, trajectory = split_keys(key), {}
    for stage in stages:
        num_steps = stage.num_steps(rows.num_rows, config)
        if num_steps:
            arguments = (keys[stage.name], rows, config)
            estimate, trajectory[stage.name] = run.scan(stage.name, stage.advance, estimate, num_steps, *arguments)
    return estimate, trajectory


def _some_sets(_, sets: jax.Array, key: jax.Array, rows: TwoSpaces, config: Config) -> tuple[None, AnchorSets]:
    return None, match_anchor_sets(key, rows, config=config.anchors, sets=sets)


def _first_estimate(key: jax.Array, rows: TwoSpaces, sets: AnchorSets, config: Config) -> tuple[Estimate, AnchorInfo]:
    anchors, info = select_anchors(sets, config=config.anchors)
    return first_estimate(key, rows, anchors, config=config), info


def _gather_evidence(key, prepared: Prepared, estimate: Estimate, config: Config) -> Evidence:
    W = estimate.as_map(project=config.published.project)
    return gather_evidence(key, prepared.fitted, prepared.held_out, W)


# -------------------------------------------------------------------------------------------------------------- driver


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


def search_once(run: Run, key: jax.Array, prepared: Prepared, config: Config) -> Searched:
    """One search: by clusters, and where the evidence falls short also by components; the better of both."""
    first = _search_clusters(run, key, prepared, config)
    if not config.components.num_runs or config.published.is_used or not config.annealing.steps:
        return first
    # The finest scale tells best whether clusters were enough; another one chooses best between two maps.
    closeness = first.evidence.closeness[-1]
    falls_short = ~(closeness >= jnp.asarray(config.components.below, closeness.dtype))
    # Without held-out rows nothing tells the better one.
    needed = falls_short & (first.evidence.num_rows > 0)
    return run.when(needed, _search_components, first, key, prepared, config)


def _search_clusters(run: Run, key: jax.Array, prepared: Prepared, config: Config) -> Searched:
    """Anchors, matching and refinement on the fitted rows; and the evidence from the held-out rows."""
    keys, rows = split_keys(key), prepared.fitted
    _, sets = run.scan("anchors", _some_sets, None, config.anchors.num_sets, keys["anchors"], rows, config)
    estimate, anchors = run.call("first estimate", _first_estimate, keys["relative"], rows, sets, config)
    estimate, trajectory = refine(run, key, SEARCH_STAGES, rows, estimate, config)
    evidence = run.call("evidence", _gather_evidence, keys["evidence"], prepared, estimate, config)
    no = jnp.zeros((), bool)
    components = ComponentsInfo(tried=no, used=no, agreement=jnp.zeros_like(evidence.score))
    return Searched(estimate=estimate, evidence=evidence, trajectory=trajectory, anchors=anchors, components=components)


def _search_components(run: Run, first: Searched, key: jax.Array, prepared: Prepared, config: Config) -> Searched:
    """Search again, by independent components, and return the better search of both.

    All runs vote on a map. The runs are also divided into groups that vote on maps of their own, because one group can
    find what all together miss. The held-out rows choose the best map, which is refined further.
    """
    keys, rows, settings = split_keys(key), prepared.fitted, config.components
    _, runs = run.scan("components", _some_runs, None, settings.num_runs, keys["components"], rows, config)
    num_starts = 1 + (settings.num_groups if settings.num_groups > 1 else 0)
    _, starts = run.scan("component starts", _some_starts, None, num_starts, key, runs, prepared, config)
    start = run.call("best start", _best_start, starts)
    estimate, _ = refine(run, key, (REFINE_BY_REGION,), rows, start.estimate, config)
    evidence = run.call("evidence", _gather_evidence, keys["evidence"], prepared, estimate, config)
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
    _, numbers: jax.Array, key: jax.Array, runs: ComponentRuns, prepared: Prepared, config: Config
) -> tuple[None, _Start]:
    """`_Start` of some votes: number 0 is that of all runs, the others are those of the groups."""
    keys, rows, settings = split_keys(key), prepared.fitted, config.components
    # Neighbouring runs differ in their numbers of axes and contrasts, so that a group takes a whole neighbourhood.
    place = jnp.arange(settings.num_runs) * settings.num_groups // settings.num_runs

    def start_of(number):
        is_member = (number == 0) | (place == number - 1)

        def only_members(runs):
            return dataclasses.replace(runs, cross=jnp.where(is_member[:, None, None], runs.cross, 0))

        def vote(_, voting):
            return only_members(vote_again(voting, config=settings))

        estimate, agreement = estimate_from_runs(jax.lax.fori_loop(0, settings.rounds, vote, only_members(runs)), rows)
        start_key = jax.random.fold_in(keys["refine_components"], number)
        steps = jnp.arange(region_pass(config))
        estimate = refine_by_region(start_key, rows, estimate, config=config, steps=steps).estimate
        score = _gather_evidence(keys["evidence"], prepared, estimate, config).score
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


def order_by_score(scores: jax.Array) -> jax.Array:
    """Fits of the same data from the best of ``scores [r]`` to the worst, then those not finite: ``[r]`` int32."""
    finite = jnp.where(jnp.isfinite(scores), scores, -jnp.inf)
    return jnp.argsort(-finite, stable=True).astype(jnp.int32)


def map_agreement(maps: jax.Array, x: jax.Array) -> jax.Array:
    """Cosine between the mapped rows ``x [n, d_x]`` of every two of ``maps [r, d_x, d_y]``: ``[r, r]``."""
    moved = jnp.einsum("ab,rbc->rac", x.T @ x / x.shape[0], maps)
    inner = jnp.einsum("rac,sac->rs", moved, maps)
    return cosines(inner)


def agreement_with_others(agreement: jax.Array, chosen: jax.Array) -> jax.Array | None:
    """Median of ``agreement [r, r]`` between the chosen restart and the others; ``None`` where there are none."""
    if agreement.shape[0] == 1:
        return None
    is_other = jnp.arange(agreement.shape[0], dtype=chosen.dtype) != chosen
    return jnp.nanmedian(jnp.where(is_other, agreement[chosen], jnp.nan))


def searched_maps(found: Searched, config: Config) -> jax.Array:
    """The maps of searches whose leaves are ``[r, ...]``, in the searched coordinates: ``[r, r_x, r_y]``."""
    return jax.vmap(lambda estimate: estimate.as_map(project=config.published.project))(found.estimate)


def choose(found: Searched, prepared: Prepared, config: Config) -> Choice:
    """Choose among searches, whose leaves are ``[r, ...]``, by their evidence from held-out rows."""
    order = order_by_score(found.evidence.score)
    chosen = order[0]
    agreement = fine_agreement(searched_maps(found, config), prepared.fitted.x)
    return Choice(
        chosen=chosen,
        order=order,
        weights=jnp.square(jnp.maximum(jnp.nan_to_num(agreement[chosen].at[chosen].set(1)), 0)),
        agreement=agreement,
        with_others=agreement_with_others(agreement, chosen),
    )


def search(run: Run, keys: jax.Array, x: PaddedRows, y: PaddedRows, config: Config) -> Search:
    """Search once for every one of ``keys [r]``, and choose."""
    prepared = run.call("preprocess", prepare, x, y, config)
    found = run.each(SEARCHING, search_once, keys, prepared, config)
    choice = run.call("choose", choose, found, prepared, config)
    return Search(prepared=prepared, found=found, choice=choice)


def _settle_one(run: Run, number: jax.Array, keys: jax.Array, searched: Search, config: Config):
    """Settle the search of one number on all rows, in all directions: its `Estimate` and its trajectory."""
    found, prepared = jax.tree.map(lambda leaf: leaf[number], searched.found), searched.prepared
    estimate = found.estimate
    if _is_guided(prepared, config) and not estimate.is_map:
        estimate = run.when(~found.components.used, _guide, estimate, keys[number], prepared, config)
    extended = run.call("extend", _extend, estimate, prepared.subspace)
    return refine(run, keys[number], SETTLING_STAGES, join_spaces(prepared.source, prepared.target), extended, config)


def _is_guided(prepared: Prepared, config: Config) -> bool:
    """Whether components vote on the chosen map, which needs many rows; known pairs guide better than components."""
    is_wanted = bool(config.components.num_runs and config.components.guided_runs)
    return is_wanted and prepared.fitted.num_rows >= MIN_GUIDED_ROWS and prepared.fitted.seeds is None


def _guide(run: Run, estimate: Estimate, key: jax.Array, prepared: Prepared, config: Config) -> Estimate:
    """Correct a map that clusters led to: independent components vote with the map as a guide.

    A map can be right in most regions and wrong in some, where its own nearest rows confirm it. The relations between
    independent components do not depend on it.
    """
    keys, rows = split_keys(key), prepared.fitted
    shorter = config.replace(components={"ica_steps": config.components.guided_ica_steps})
    _, runs = run.scan("components", _some_runs, None, config.components.guided_runs, keys["guide"], rows, shorter)
    estimate = run.call("components and map", _guided_estimate, runs, rows, estimate, config)
    return refine(run, key, (REFINE_GUIDED,), rows, estimate, config)[0]


def _guided_estimate(runs: ComponentRuns, rows: TwoSpaces, estimate: Estimate, config: Config) -> Estimate:
    return estimate_from_runs(vote_from(runs, rows, estimate, config=config.components), rows)[0]


def _extend(estimate: Estimate, subspace: Subspace) -> Estimate:
    return dataclasses.replace(estimate, matrix=subspace.extend(estimate.matrix))


def average(estimates: Estimate, weights: jax.Array) -> Estimate:
    """Weighted mean of cross-covariances ``[s, d_x, d_y]``, best first; the first has weight 1. NaN is left out.

    Maps that found the same alignment differ by the noise of their draws, which averages out.
    """
    matrices = estimates.matrix
    finite = jnp.isfinite(matrices).all(axis=(1, 2))
    weights = jnp.where(finite, weights, 0)
    mean = jnp.einsum("s,sab->ab", weights, jnp.nan_to_num(matrices)) / jnp.where(finite[0], weights.sum(), 1)
    # If the first is not finite, it is returned unchanged.
    return dataclasses.replace(estimates, matrix=jnp.where(finite[0], mean, matrices[0]))


def num_averaged(num_settled: int, found: Searched) -> int:
    """Number of searches that are settled: 1 after a published refinement, because maps are not averaged."""
    return 1 if found.estimate.is_map else min(num_settled, found.estimate.matrix.shape[0])


def _weighted_map(estimate: Estimate, source: Space, target: Space, config: Config) -> jax.Array:
    """The map that is returned for the last estimate: weighted and partly whitened."""
    whitening_x, whitening_y = (fit_whitening(space.rows, config.whitening.power) for space in (source, target))
    if estimate.is_map:
        # A map has no correlations to weigh directions by.
        return whiten_map(estimate.as_map(project=config.published.project), whitening_x, whitening_y)
    return map_from_cross(estimate.matrix, whitening_x, whitening_y, config.whitening.reliability_power)


def finish(searched: Search, estimate: Estimate, trajectory: dict[str, jax.Array], config: Config) -> AlignResult:
    """Weigh directions, judge and pack the result; ``trajectory`` is that of the settling stages."""
    choice, source, target = searched.choice, searched.prepared.source, searched.prepared.target
    chosen = jax.tree.map(lambda leaf: leaf[choice.chosen], searched.found)
    W = estimate.as_map(project=config.published.project)
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    orthogonality = jnp.linalg.norm(gram - jnp.eye(gram.shape[0], dtype=W.dtype))
    W = _weighted_map(estimate, source, target, config)
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
    """Settle the best of the searches, or the average of the best few, and judge the result."""
    settled = searched.choice.order[: num_averaged(num_settled, searched.found)]
    estimates, trajectories = run.each(SETTLING, _settle_one, settled, keys, searched, config)
    estimate, trajectory = jax.tree.map(lambda leaf: leaf[0], (estimates, trajectories))
    if settled.shape[0] > 1:
        estimate = run.call("average", average, estimates, searched.choice.weights[settled])
    return run.call("finish", finish, searched, estimate, trajectory, config)


def fit(
    run: Run, keys: jax.Array, x: PaddedRows, y: PaddedRows, config: Config, num_settled: int = 1
) -> tuple[AlignResult, Search]:
    """Search once per key, choose the best search without a label, settle it and judge the result.

    Args:
        run: how the steps are carried out.
        keys: ``[r]`` random keys, one per restart. Each search depends on its own key alone.
        x: rows of the source, from `data.inputs.prepare_inputs`.
        y: rows of the target.
        config: a checked `Config`.
        num_settled: number of searches that are settled and averaged.

    Returns:
        `AlignResult`, and the `Search` it comes from.
    """
    searched = search(run, keys, x, y, config)
    return settle(run, keys, searched, config, num_settled), searched
