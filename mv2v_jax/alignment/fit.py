"""The whole method on one screen."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.anchors import Anchors, AnchorSets, match_anchor_sets, select_anchors
from mv2v_jax.alignment.refine_annealed import annealing_length, refine_annealed, refine_csls, refine_whole
from mv2v_jax.alignment.refine_published import Refined, refine_clusters, refine_matching
from mv2v_jax.alignment.relative import match_relative
from mv2v_jax.alignment.results import AlignInfo, AlignResult
from mv2v_jax.alignment.score import Evidence, gather_evidence, judge
from mv2v_jax.alignment.seeds import Seeds, blend_seeds, pair_seeds
from mv2v_jax.alignment.space import HoldOut, Space, fit_space, hold_out, num_held_out
from mv2v_jax.alignment.subspace import in_directions, lift, lower, principal_directions, project, project_seeds
from mv2v_jax.alignment.whitening import fit_whitening, map_from_cross, whiten_map
from mv2v_jax.config import Config, check_config
from mv2v_jax.data.checks import check_fitting_rows, check_pairs
from mv2v_jax.data.padding import PaddedRows, pad_rows
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.linalg import polar, scale_to_norm
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sampling import draw_rows, order_rows


@pytree
class Keys:
    """One key per stage that draws, split once."""

    anchors: jax.Array
    matching: jax.Array
    refine_matching: jax.Array
    refine_clusters: jax.Array
    refine_annealed: jax.Array
    refine_annealed_again: jax.Array
    refine_csls: jax.Array
    refine_whole: jax.Array
    evidence: jax.Array


def split_keys(key: jax.Array) -> Keys:
    names = [field.name for field in dataclasses.fields(Keys)]
    return Keys(**dict(zip(names, jax.random.split(key, len(names)), strict=True)))


class Refinement(NamedTuple):
    """One refinement stage: its name and its key's, its steps by config and rows of the smaller space, the function."""

    name: str
    num_steps: Callable[[Config, int], int]
    run: Callable[..., Refined]


# In their order, all on the fitted rows: the published ones return maps, the annealed one a cross-covariance.
REFINEMENTS = (
    Refinement("refine_matching", lambda config, num_rows: config.match_steps, refine_matching),
    Refinement("refine_clusters", lambda config, num_rows: config.cluster_steps, refine_clusters),
    Refinement("refine_annealed", lambda config, num_rows: annealing_length(num_rows, config), refine_annealed),
)


def _anneal_again(key, x, y, matrix, *, config: Config, steps=None, known: Seeds | None = None) -> Refined:
    """The second half of the annealed refinement once more, in twice the directions of the search."""
    length = annealing_length(min(x.shape[0], y.shape[0]), config)
    half = length // 2
    steps = (jnp.arange(half) if steps is None else steps) + length - half
    directions_x, directions_y = (principal_directions(rows, 2 * config.search_dims) for rows in (x, y))
    x, y = in_directions(x, directions_x), in_directions(y, directions_y)
    known = project_seeds(known, directions_x, directions_y)
    lowered = lower(matrix, directions_x, directions_y)
    refined = refine_annealed(key, x, y, lowered, config=config, steps=steps, known=known)
    return Refined(matrix=lift(refined.matrix, directions_x, directions_y), objective=refined.objective)


def again_steps(config: Config, num_rows: int) -> int:
    """Steps of `_anneal_again`: none where so few rows were held out that the fit cannot have missed them."""
    many_held_out = 20 * num_held_out(num_rows, config.held_out_rows) >= num_rows
    return annealing_length(num_rows, config) // 2 if many_held_out else 0


# On all rows, the held-out ones among them: they have been asked by then.
SETTLING = (
    Refinement("refine_annealed_again", again_steps, _anneal_again),
    Refinement("refine_csls", lambda config, num_rows: config.csls_steps, refine_csls),
    Refinement("refine_whole", lambda config, num_rows: config.whole_steps, refine_whole),
)


@pytree
class SearchRows:
    """What a search sees of both spaces; every restart sees the same.

    Attributes:
        x: `HoldOut` of the source, rows of ``[., r_x]``.
        y: `HoldOut` of the target, rows of ``[., r_y]``.
        directions_x: ``[d_x, r_x]``, the principal directions whose coordinates these are; ``None`` for all.
        directions_y: ``[d_y, r_y]``, the same of the target.
        known: `Seeds` in these coordinates; ``None`` where there are none.
    """

    x: HoldOut
    y: HoldOut
    directions_x: jax.Array | None
    directions_y: jax.Array | None
    known: Seeds | None


def prepare_search(space_x: Space, space_y: Space, *, config: Config) -> SearchRows:
    """Hold rows out of both spaces, and give the others and them in their principal directions."""
    parts = [hold_out(space, config.held_out_rows) for space in (space_x, space_y)]
    directions = [principal_directions(part.fitted, config.search_dims) for part in parts]
    x, y = (project(part, found) for part, found in zip(parts, directions, strict=True))
    known = project_seeds(pair_seeds(space_x.known, space_y.known), *directions)
    return SearchRows(x=x, y=y, directions_x=directions[0], directions_y=directions[1], known=known)


@pytree
class Searched:
    """A map that was searched for on the fitted rows, before it is settled.

    Attributes:
        matrix: ``[r_x, r_y]``, a map or a cross-covariance between the coordinates of `SearchRows`.
        evidence: `Evidence` of it from the held-out rows.
        trajectory: per stage, its label-free objective at every step.
        anchor_objective, anchor_agreement, anchor_kept: see `AlignInfo`.
    """

    matrix: jax.Array
    evidence: Evidence
    trajectory: dict[str, jax.Array]
    anchor_objective: jax.Array
    anchor_agreement: jax.Array
    anchor_kept: jax.Array


def initial_map(key, x: jax.Array, y: jax.Array, sets: AnchorSets, *, config: Config, known: Seeds | None = None):
    """Anchors that agree, relative representations: the first matrix ``[d_x, d_y]`` and the anchors.

    The matrix is a map where a published refinement goes on with it, else a cross-covariance, whose singular values
    tell which directions to trust.
    """
    anchors = select_anchors(sets, config=config)
    drawn = draw_rows(key, x, config.matching_rows or x.shape[0], *order_rows(key, x))
    partners = match_relative(drawn, y, anchors.x, anchors.y, num_neighbors=config.num_neighbors)
    cross = blend_seeds(drawn.T @ partners.rows, len(drawn), known, config)
    if config.match_steps or config.cluster_steps or not config.returns_cross:
        return polar(cross), anchors
    return scale_to_norm(cross, min(cross.shape) ** 0.5), anchors


def as_map(matrix: jax.Array, *, config: Config) -> jax.Array:
    """The map that a stage's matrix stands for, before directions are weighted."""
    return polar(matrix) if config.project else matrix


def _weigh_map(matrix: jax.Array, space_x: Space, space_y: Space, *, config: Config) -> jax.Array:
    """The map that is returned for the last stage's matrix: weighted and partly whitened."""
    whitening_x, whitening_y = (fit_whitening(space.rows, config.whitening_power) for space in (space_x, space_y))
    if config.returns_cross:
        return map_from_cross(matrix, whitening_x, whitening_y, config.reliability_power)
    # The published refinements end in a map, which has no correlations to weigh by.
    return whiten_map(as_map(matrix, config=config), whitening_x, whitening_y)


def refine(
    keys: Keys,
    stages: tuple[Refinement, ...],
    x: jax.Array,
    y: jax.Array,
    matrix: jax.Array,
    *,
    config: Config,
    known: Seeds | None = None,
):
    """Run the stages that have steps, one after the other: the last matrix, and each one's objective by name."""
    trajectory = {}
    for name, num_steps, run in stages:
        if num_steps(config, min(x.shape[0], y.shape[0])):
            refined = run(getattr(keys, name), x, y, matrix, config=config, known=known)
            matrix, trajectory[name] = refined.matrix, refined.objective
    return matrix, trajectory


def search_map(key: jax.Array, rows: SearchRows, *, config: Config) -> Searched:
    """Everything that has a chance in it, on the fitted rows: anchors, matching, refinement; and the evidence."""
    keys, x, y, known = split_keys(key), rows.x.fitted, rows.y.fitted, rows.known
    sets = match_anchor_sets(keys.anchors, x, y, config=config, known=known)
    matrix, anchors = initial_map(keys.matching, x, y, sets, config=config, known=known)
    matrix, trajectory = refine(keys, REFINEMENTS, x, y, matrix, config=config, known=known)
    return weigh(keys.evidence, rows, matrix, trajectory, sets, anchors, config=config)


def weigh(key, rows: SearchRows, matrix, trajectory, sets: AnchorSets, anchors: Anchors, *, config) -> Searched:
    """Ask the held-out rows, and pack a search."""
    return Searched(
        matrix=matrix,
        evidence=gather_evidence(key, rows.x, rows.y, as_map(matrix, config=config), anchors.agreement),
        trajectory=trajectory,
        anchor_objective=sets.objective,
        anchor_agreement=anchors.agreement,
        anchor_kept=anchors.kept,
    )


def finish(
    space_x: Space, space_y: Space, matrix: jax.Array, searched: Searched, trajectory, agreement=None, *, config: Config
) -> AlignResult:
    """Weigh, judge and pack the result; ``trajectory`` is that of the settling stages, ``agreement``
    that with other restarts.
    """
    W = as_map(matrix, config=config)
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    orthogonality = jnp.linalg.norm(gram - jnp.eye(gram.shape[0], dtype=W.dtype))
    W = _weigh_map(matrix, space_x, space_y, config=config)
    judgement = judge(searched.evidence, agreement)
    return AlignResult(
        map=LinearMap(W=W, mean_x=space_x.mean, mean_y=space_y.mean, scale_x=space_x.scale, scale_y=space_y.scale),
        verdict=judgement.verdict,
        confidence=judgement.confidence,
        estimated_top1=judgement.estimated_top1,
        evidence=searched.evidence,
        trajectory={**searched.trajectory, **trajectory},
        info=AlignInfo(
            anchor_objective=searched.anchor_objective,
            anchor_agreement=searched.anchor_agreement,
            anchor_kept=searched.anchor_kept,
            zero_rows_x=space_x.zero_rows,
            zero_rows_y=space_y.zero_rows,
            orthogonality=orthogonality,
            all_finite=jnp.isfinite(W).all(),
        ),
    )


def lift_search(matrix: jax.Array, rows: SearchRows) -> jax.Array:
    """The matrix ``[d_x, d_y]`` between whole spaces that a search's matrix stands for."""
    return lift(matrix, rows.directions_x, rows.directions_y)


def settle(key: jax.Array, space_x: Space, space_y: Space, rows: SearchRows, matrix: jax.Array, *, config: Config):
    """Settle the matrix of a search on all rows, in all directions: a matrix ``[d_x, d_y]`` and its trajectory."""
    lifted = lift_search(matrix, rows)
    known = pair_seeds(space_x.known, space_y.known)
    return refine(split_keys(key), SETTLING, space_x.rows, space_y.rows, lifted, config=config, known=known)


@jax.jit
def _align(key: jax.Array, x: PaddedRows, y: PaddedRows, config: Config) -> AlignResult:
    space_x, space_y = fit_space(*x), fit_space(*y)
    rows = prepare_search(space_x, space_y, config=config)
    searched = search_map(key, rows, config=config)
    matrix, trajectory = settle(key, space_x, space_y, rows, searched.matrix, config=config)
    return finish(space_x, space_y, matrix, searched, trajectory, config=config)


def align(
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    config: Config | None = None,
    *,
    pairs: tuple[Any, Any] | None = None,
) -> AlignResult:
    """Learn a linear map from one embedding space to another without a single known pair, or with a few.

    One pure function: it jits, vmaps over keys, exports, and compiles once per shapes and static config.

    Args:
        key: random key, from `jax.random.key`.
        x: ``[n, d_x]`` raw rows of the source encoder; float16, bfloat16, float32 or float64. Also a memory map or
            `rows.RowFiles`, which may be larger than memory.
        y: ``[m, d_y]`` raw rows of the target encoder, of other texts of the same kind.
        config: a `Config`; the default preset if none. Its integers are static, its floats traced.
        pairs: raw rows ``[p, d_x]`` and ``[p, d_y]`` of which row i and row i belong together, if any are known: none,
            a handful or thousands. They need not be rows of ``x`` and ``y``.

    Returns:
        `AlignResult`: the map, the verdict on it with its evidence, the trajectory of every stage, and more.

    Raises:
        InputError: a `ValueError`; shapes, dtypes or config out of range, and, where the arrays are concrete, NaN,
            infinity, rows too long or too short to square, or all equal.

    Source: mini-vec2vec (arXiv 2510.02348); the default preset departs from it as `Config` and `anneal` say.
    """
    config = Config() if config is None else config
    check_config(config)
    rows = (check_fitting_rows(x, "x", config), check_fitting_rows(y, "y", config))
    known = check_pairs(pairs, *rows)
    sized = (pad_rows(side, config.max_rows, known=side_known) for side, side_known in zip(rows, known, strict=True))
    return _align(key, *sized, config)
