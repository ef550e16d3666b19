"""The score of a map from unlabelled rows, and the verdict on it.

The objective of a fit cannot judge the map: with a few thousand rows a fit overfits the pairs it was matched by, and a
wrong map can end with the higher objective. Therefore some rows of both spaces are held out. The score measures how
close mapped held-out rows come to rows of the other space, on a scale that the data provides. On this scale, 0 is the
closeness of the same rows after a reflection (the null), which keeps every variance and breaks the geometry. 1 is the
closeness of rows of one space to each other, as if both encoders were the same.

A map that matches topics and not texts scores well against reflections of all directions, because these break the
topics as well. Therefore closeness is measured at several scales: a null of a finer scale keeps the first principal
directions and reflects the others. The score, by which restarts are chosen, is that of the third scale.

Three things make a verdict impossible however good the score is. Rows may have no structure among their neighbours, so
that nothing ties one row to another. The cloud may be symmetric, so that a second map is as good. And restarts may
disagree about the directions that carry the texts.
"""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.ops.knn import nearness, top_neighbors
from mv2v_jax.ops.linalg import cosines, eigh_descending
from mv2v_jax.ops.masked import unit_rows
from mv2v_jax.ops.pytree import pytree


@pytree
class Evidence:
    """Label-free evidence for a map, from held-out rows. Scalars, except for the scales.

    Attributes:
        cross: mean cosine of mapped held-out rows with their nearest fitted rows of the other space, both directions.
        cross_each: ``[2]``, ``cross`` of the rows of X alone and of the rows of Y alone; close rows are dense.
        within: the same with the nearest fitted rows of their own space.
        null: ``[s]``, per scale the mean of ``cross`` over several reflections that keep every variance. The first
            scale reflects all principal directions of Y, the others all but the first `SCALES` of them.
        null_deviation: ``[s]``, standard deviation of ``cross`` over these reflections.
        closeness: ``[s]``, ``(cross - null) / (within - null)``: 0 for a map that found nothing at this scale, 1 where
            mapped rows look like rows of the target. The denominator is at least five times ``null_deviation``, and at
            least 0.02.
        local_structure: structure of rows among their neighbours: how much closer rows are to each other than after
            reflections, once the mean of their neighbours is subtracted, in standard deviations. About 0 in round
            blobs, more than 0.3 in text embeddings. The larger one of the two spaces, because noise hides it.
        local_closeness: how much of that structure mapped rows of X and rows of Y share: 0 where topics match and texts
            do not, 1 where both encoders are the same. More than 0.2 for right maps between text encoders.
        symmetry: share of its closeness that a cloud loses under the best of several simple transformations (x to -x,
            flips of one principal direction, exchanges of two), per share of the variance that is moved. About 0 where
            the cloud is symmetric; text embeddings lose more than 1. The smaller one of the two spaces.
        distinct: share of the held-out rows of the less varied space that have no exact copy among the fitted rows.
        num_rows: int32, number of held-out rows of the smaller space. Without held-out rows all other fields are 0.
        score: ``closeness`` of the third scale, which keeps a quarter of the directions. Among maps of the same data
            it follows their top-1 best. Higher is better.
    """

    cross: jax.Array
    cross_each: jax.Array
    within: jax.Array
    null: jax.Array
    null_deviation: jax.Array
    closeness: jax.Array
    local_structure: jax.Array
    local_closeness: jax.Array
    symmetry: jax.Array
    distinct: jax.Array
    num_rows: jax.Array
    score: jax.Array


# Share of the principal directions that the nulls of a scale keep.
SCALES = (0.0, 1 / 16, 1 / 4, 1 / 2)
# The scale of the score.
_FINER = 2
# Number of fitted rows that held-out rows are compared with; more would cost more and change little.
_BANK_ROWS = 4_096
# Nearness is the mean over this many groups of fitted rows.
_NUM_GROUPS = 10
# Reflections per scale.
_NUM_NULLS = 4
# The scale from null to within is at least this many deviations of the nulls long, and at least this long. In a cloud
# without geometry it would otherwise be as short as chance makes it.
_MIN_ROOM, _SHORTEST_ROOM = 5, 0.02
# Symmetries and neighbourhoods are properties of the cloud, for which fewer rows are enough.
_SYMMETRY_ROWS, _SYMMETRY_BANK_ROWS, _LOCAL_ROWS = 512, 2_048, 4_096
# Flips and exchanges that are tried, of the directions of largest variance.
_NUM_FLIPS = 8
_NUM_NEIGHBORS = 4
# Directions with less than this share of the mean variance are not used: they hold rounding and noise.
_MIN_VARIANCE = 0.01
# Two unit rows of a larger cosine are copies of each other.
_COPY = 1 - 1e-5


def gather_evidence(key: jax.Array, fitted: TwoSpaces, held_out: TwoSpaces, W: jax.Array) -> Evidence:
    """Score the map ``W [d_x, d_y]`` on held-out rows.

    Args:
        key: random key; draws the reflections.
        fitted: centred unit rows that the map was fitted on.
        held_out: centred unit rows that the map was not fitted on.
        W: ``[d_x, d_y]``, the map before directions are weighted.

    Example:
        >>> import jax
        >>> x = unit_rows(jax.random.laplace(jax.random.key(0), (200, 8)))
        >>> spaces = [TwoSpaces(x=x[part], y=x[part]) for part in (slice(20, 200), slice(20))]
        >>> gather_evidence(jax.random.key(1), *spaces, jax.numpy.eye(8)).closeness.shape
        (4,)
    """
    num_rows = jnp.asarray(held_out.num_rows, jnp.int32)
    if not held_out.num_rows:
        nothing, scales = jnp.zeros((), W.dtype), jnp.zeros(len(SCALES), W.dtype)
        return Evidence(
            cross=nothing,
            cross_each=jnp.zeros(2, W.dtype),
            within=nothing,
            null=scales,
            null_deviation=scales,
            closeness=scales,
            local_structure=nothing,
            local_closeness=nothing,
            symmetry=nothing,
            distinct=nothing,
            num_rows=num_rows,
            score=nothing,
        )
    directions, num_used = _principal_directions(fitted.y[:_BANK_ROWS])
    queries = unit_rows(held_out.x @ W) @ directions, held_out.y @ directions
    banks = unit_rows(fitted.x[:_BANK_ROWS] @ W) @ directions, fitted.y[:_BANK_ROWS] @ directions
    kept = (jnp.asarray(SCALES, W.dtype) * num_used.astype(W.dtype)).astype(jnp.int32)
    # The signs of all reflections in one row, see `sampling`.
    number, num_dims = (len(SCALES) + 1) * _NUM_NULLS, max(W.shape)
    signs = jax.random.rademacher(key, (number * num_dims,), dtype=W.dtype).reshape(number, num_dims)
    found = _compare(signs[_NUM_NULLS:, : W.shape[1]], queries, banks, kept)
    spaces = (held_out.x, fitted.x), (held_out.y, fitted.y)
    signs = signs[:_NUM_NULLS]
    local_structure, local_closeness = _local_evidence(signs, unit_rows(fitted.x[:_LOCAL_ROWS] @ W), fitted.y)
    return Evidence(
        **found._asdict(),
        cross=found.cross_each.mean(),
        local_structure=local_structure,
        local_closeness=local_closeness,
        symmetry=jnp.minimum(*[_symmetry(signs, rows) for _, rows in spaces]),
        distinct=1 - jnp.maximum(*[_has_copy(*sides).mean() for sides in spaces]),
        num_rows=num_rows,
        score=found.closeness[_FINER],
    )


class _Compared(NamedTuple):
    """Closeness of two clouds; the fields are those of `Evidence`."""

    cross_each: jax.Array
    within: jax.Array
    null: jax.Array
    null_deviation: jax.Array
    closeness: jax.Array


def _compare(
    signs: jax.Array, queries: tuple[jax.Array, jax.Array], banks: tuple[jax.Array, jax.Array], kept: jax.Array
) -> _Compared:
    """Compare clouds in principal coordinates with reflections that keep the first ``kept [s]`` of them.

    Args:
        signs: ``[s * n, d]``, 1 or -1 for each coordinate, for n reflections per scale.
        queries: held-out rows of X, mapped, and of Y.
        banks: fitted rows of X, mapped, and of Y.
        kept: ``[s]`` int32.
    """
    place = jnp.arange(queries[0].shape[1], dtype=jnp.int32)

    def crossing(queries):
        return jnp.stack([_nearness(queries[0], banks[1]).mean(), _nearness(queries[1], banks[0]).mean()])

    def reflected(inputs):
        signs, num_kept = inputs
        signs = jnp.where(place < num_kept, 1, signs)
        return crossing(tuple(rows * signs[None] for rows in queries))

    # The first one keeps all coordinates, so that one loop is compiled for all.
    num_nulls = signs.shape[0] // kept.shape[0]
    all_kept = jnp.concatenate([jnp.full(1, len(place), kept.dtype), jnp.repeat(kept, num_nulls)])
    found = jax.lax.map(reflected, (jnp.concatenate([signs[:1], signs]), all_kept))
    cross_each, nulls = found[0], found[1:].mean(axis=1).reshape(kept.shape[0], num_nulls)
    within = (_nearness(queries[0], banks[0]).mean() + _nearness(queries[1], banks[1]).mean()) / 2
    null, deviation = nulls.mean(axis=1), nulls.std(axis=1)
    room = jnp.maximum(within - null, jnp.maximum(_MIN_ROOM * deviation, _SHORTEST_ROOM))
    return _Compared(cross_each, within, null, deviation, (cross_each.mean() - null) / room)


def _principal_directions(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Principal directions of ``rows [n, d]``, largest variance first, ``[d, d]``; and how many of them are used."""
    spectrum, directions = eigh_descending(rows.T @ rows)
    return directions, jnp.sum(spectrum > _MIN_VARIANCE * spectrum.mean(), dtype=jnp.int32)


def _nearness(queries: jax.Array, bank: jax.Array) -> jax.Array:
    return nearness(queries, bank, num_groups=_NUM_GROUPS)


def _has_copy(queries: jax.Array, bank: jax.Array) -> jax.Array:
    """Whether each query has a copy in the bank: ``[n]``, 0 or 1. Zero rows have none."""
    nearest = top_neighbors(queries, bank[:_BANK_ROWS], num_neighbors=1)
    return (nearest.similarity[:, 0] > _COPY).astype(queries.dtype)


def _leave_neighbors(rows: jax.Array) -> jax.Array:
    """Unit rows of what is left once the mean of its nearest neighbours is subtracted from each row."""
    rows = rows[:_LOCAL_ROWS]
    # A row is its own nearest neighbour, which is left out.
    nearest = top_neighbors(rows, rows, num_neighbors=_NUM_NEIGHBORS + 1)
    means = rows[nearest.index[:, 1:]].mean(axis=1)
    present = jnp.square(rows).sum(axis=1, keepdims=True) > 0
    return jnp.where(present, unit_rows(rows - means), 0)


def _gain(signs: jax.Array, queries: jax.Array, bank: jax.Array) -> jax.Array:
    """How much closer each query is to the bank than after reflections of the coordinates, ``[n]``."""
    signs = signs[:, : queries.shape[1]]
    found = jax.lax.map(
        lambda side: _nearness(queries * side[None], bank), jnp.concatenate([jnp.ones_like(signs[:1]), signs])
    )
    return found[0] - found[1:].mean(axis=0)


def _local_evidence(signs: jax.Array, mapped: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Structure of rows among their neighbours, and how much of it both spaces share; see `Evidence`."""
    eps = jnp.finfo(mapped.dtype).eps
    x, y = (_leave_neighbors(rows) for rows in (mapped, target))
    of_x, of_y = (_principal_directions(left[1::2])[0] for left in (x, y))
    # Reflections of its own principal directions keep the variances of round noise.
    x_alone, y_alone = (_gain(signs, left[::2] @ of, left[1::2] @ of) for left, of in ((x, of_x), (y, of_y)))
    x, y = x @ of_y, y @ of_y
    own = (_gain(signs, x[::2], x[1::2]).mean() + y_alone.mean()) / 2
    shared = (_gain(signs, x[::2], y[1::2]).mean() + _gain(signs, y[::2], x[1::2]).mean()) / 2
    structure = [gained.mean() / (gained.std() + eps) for gained in (x_alone, y_alone)]
    return jnp.maximum(*structure), shared / (jnp.maximum(own, 0) + eps)


def _symmetry(signs: jax.Array, rows: jax.Array) -> jax.Array:
    """Smallest loss of closeness under simple transformations, per moved variance; see `Evidence.symmetry`."""
    queries, bank = rows[::2][:_SYMMETRY_ROWS], rows[1::2][:_SYMMETRY_BANK_ROWS]
    spectrum, directions = eigh_descending(bank.T @ bank)
    queries, bank = queries @ directions, bank @ directions
    variance = spectrum / (spectrum.sum() + jnp.finfo(bank.dtype).tiny)
    num_dims = queries.shape[1]
    place, number = jnp.arange(num_dims)[None], jnp.arange(min(_NUM_FLIPS, num_dims))[:, None]
    after = (number + 1) % num_dims
    ones = jnp.ones((len(number), num_dims), queries.dtype)
    signs = signs[:, :num_dims]
    # Each transformation is an order of the coordinates and their signs: none, all, one flip, an exchange of two as a
    # turn by a right angle, and reflections at random.
    exchanged = jnp.where(place == number, after, jnp.where(place == after, number, place))
    sides = [
        ones[:1],
        -ones[:1],
        jnp.where(place == number, -ones, ones),
        jnp.where(place == after, -ones, ones),
        signs,
    ]
    orders = [jnp.broadcast_to(place, side.shape) for side in sides]
    orders[3] = exchanged

    def transformed(inputs):
        order, side = inputs
        return _nearness(queries[:, order] * side[None], bank)

    found = jax.lax.map(transformed, (jnp.concatenate(orders), jnp.concatenate(sides)))
    before, after_moves, reflected = found[:1], found[1 : -len(signs)], found[-len(signs) :]
    one, two = number[:, 0], after[:, 0]
    moved = jnp.concatenate([ones[0, :1], variance[one], variance[one] + variance[two]])
    lost = before - after_moves
    # An upper bound, so that noise in a direction of little variance does not look like a symmetry.
    bound = lost.mean(axis=1) + lost.std(axis=1) / jnp.sqrt(lost.shape[1])
    room = before.mean() - reflected.mean()
    return (bound / (jnp.maximum(room, 0) * moved + jnp.finfo(room.dtype).eps)).min()


class Verdict(enum.IntEnum):
    """The verdict on a fit; `AlignResult.verdict` holds the number."""

    not_aligned = 0
    uncertain = 1
    aligned = 2


class Reason(enum.IntEnum):
    """What decided the verdict; `AlignResult.reason` holds the number.

    Attributes:
        restarts_agree_at_every_scale: the map is ``aligned``.
        only_coarse_structure: topics may match, but the directions that tell texts of a topic apart do not, or texts
            have no structure within their topics.
        ambiguous: another map is as good: the cloud is symmetric, or restarts found different maps that score well.
        too_few_rows: there are too few held-out rows, or most rows are copies of others.
        unlike_distributions: rows come nearer than by chance, but no restart found a consistent map. Both sides may
            hold other topics, or the same topics in other proportions.
        geometries_differ: mapped rows come hardly nearer to rows of the other space than after a reflection.
        one_restart_only: no other restart confirms the map.
    """

    restarts_agree_at_every_scale = 0
    only_coarse_structure = 1
    ambiguous = 2
    too_few_rows = 3
    unlike_distributions = 4
    geometries_differ = 5
    one_restart_only = 6


class Calibration(NamedTuple):
    """Constants of `judge` and `estimate_recall`, which `benchmarks.verdict --calibrate` fits on its population.

    Attributes:
        closeness_midpoint: closeness of the weakest scale at which half of the maps are right.
        agreement_midpoint: the same for the agreement of restarts.
        recall_offset, recall_closeness: logistic curve of recall among 2,000 rows, over right maps.
        recall_log_rows: what maps that were fitted on more rows gain, by the logarithm of the number held out.
        recall_density: what a query that lies closer to the rows of the index than the average loses.
        recall_log_size: what a larger index loses, by the logarithm of its size.
        recall_log_found: what more rows found gain, by the logarithm of their number.
    """

    closeness_midpoint: float
    agreement_midpoint: float
    recall_offset: float
    recall_closeness: float
    recall_log_rows: float
    recall_density: float
    recall_log_size: float
    recall_log_found: float


CALIBRATION = Calibration(
    closeness_midpoint=0.09,
    agreement_midpoint=0.45,
    recall_offset=-4.78,
    recall_closeness=4.81,
    recall_log_rows=0.46,
    recall_density=-21.9,
    recall_log_size=0.51,
    recall_log_found=0.75,
)
# Slopes of the logistic curves of success. Right and wrong maps can be separated nearly without error, so that no
# slope would be steep enough: these leave some room around the midpoints to `Verdict.uncertain`.
_CLOSENESS_SLOPE, _AGREEMENT_SLOPE = 50.0, 20.0
# The same for the share of its coarse closeness that a map keeps at the finest scale: about 0.1 where only topics
# match, more than 0.26 for right maps.
_SHARE_MIDPOINT, _SHARE_SLOPE = 0.18, 40.0
# Restarts that agree by less than the first value are different maps. From the second closeness on, each of them is as
# good as a right map: the data is ambiguous. From the third one on, the chosen one may be right and the other wrong.
_DIFFERENT, _AS_GOOD, _MAYBE_GOOD = 0.2, 0.3, 0.17
# Clouds below these values are symmetric, have no structure among neighbours, or share none; see `Evidence`.
MIN_SYMMETRY, MIN_LOCAL_STRUCTURE, MIN_LOCAL_CLOSENESS = 0.5, 0.12, 0.17
# Without fine structure, the closeness of the two coarsest scales is the reason: below the first value the geometries
# differ, below the second one the distributions do.
_SAME_GEOMETRY, _SAME_DISTRIBUTION = 0.3, 0.45
ALIGNED, NOT_ALIGNED = 0.85, 0.15
# Fewer held-out rows than this are too few for a verdict, and so is a smaller share of distinct rows.
MIN_HELD_OUT, MIN_DISTINCT = 50, 0.5
# The size of the index that `Judgement.estimated_top1` is meant for.
INDEX_SIZE = 2_000


@pytree
class Judgement:
    """A verdict, the reason for it, its confidence and an estimate of quality. Scalars.

    Attributes:
        verdict: int32, a `Verdict`.
        reason: int32, a `Reason`.
        confidence: calibrated probability, from 0 to 1, that the map is right: that true pairs would have a FOSCTTM
            below 0.05.
        estimated_top1: estimate of the top-1 that true pairs would give among 2,000 rows, see `estimate_recall`.
    """

    verdict: jax.Array
    reason: jax.Array
    confidence: jax.Array
    estimated_top1: jax.Array


def judge(evidence: Evidence, agreement: jax.Array | None = None, calibration: Calibration = CALIBRATION) -> Judgement:
    """Turn evidence into a verdict. The weakest evidence decides.

    Args:
        evidence: `Evidence` of the fit.
        agreement: scalar from -1 to 1, agreement of the map with those of other restarts, see `fine_agreement`. Without
            it the verdict is at best `Verdict.uncertain`.
        calibration: `Calibration`.
    """
    # NaN is no evidence.
    closeness = jnp.nan_to_num(evidence.closeness, nan=-1.0)
    weakest = closeness.min(axis=-1)
    fine = jax.nn.sigmoid(_CLOSENESS_SLOPE * (weakest - calibration.closeness_midpoint))
    # Where topics match and texts do not, closeness falls to nothing towards the finer scales.
    kept_share = closeness[..., -1] / jnp.maximum(closeness[..., 1], jnp.finfo(closeness.dtype).eps)
    fine *= jax.nn.sigmoid(_SHARE_SLOPE * (kept_share - _SHARE_MIDPOINT))
    agreeing = jnp.ones_like(fine)
    if agreement is not None:
        agreeing = jax.nn.sigmoid(_AGREEMENT_SLOPE * (agreement - calibration.agreement_midpoint))
    success = fine * agreeing
    coarse = closeness[..., :2].max(axis=-1)
    is_fine, is_coarse = fine >= ALIGNED, coarse >= _SAME_DISTRIBUTION
    is_symmetric = evidence.symmetry < MIN_SYMMETRY
    is_round = (evidence.local_structure < MIN_LOCAL_STRUCTURE) | (evidence.local_closeness < MIN_LOCAL_CLOSENESS)
    are_different = jnp.zeros_like(is_round) if agreement is None else agreement < _DIFFERENT
    has_fine_map = is_fine & ~(are_different & (weakest < _AS_GOOD))
    too_few = (evidence.num_rows < MIN_HELD_OUT) | (evidence.distinct < MIN_DISTINCT)
    # The first of these that holds is the reason.
    cases = [
        (too_few, Reason.too_few_rows),
        (coarse < _SAME_GEOMETRY, Reason.geometries_differ),
        (is_symmetric, Reason.ambiguous),
        (is_round, Reason.only_coarse_structure),
        (~has_fine_map & ~is_coarse, Reason.unlike_distributions),
        (~has_fine_map, Reason.only_coarse_structure),
        (jnp.full_like(is_fine, agreement is None), Reason.one_restart_only),
        (are_different, Reason.ambiguous),
        (success < ALIGNED, Reason.only_coarse_structure),
    ]
    reason = jnp.select(
        [case for case, _ in cases],
        [jnp.full_like(evidence.num_rows, number.value) for _, number in cases],
        jnp.full_like(evidence.num_rows, Reason.restarts_agree_at_every_scale.value),
    )
    # These reasons leave it open whether the map is right.
    is_open = (reason == Reason.too_few_rows.value) | (reason == Reason.ambiguous.value) | is_round
    is_open &= reason != Reason.geometries_differ.value
    is_confirmed = reason == Reason.restarts_agree_at_every_scale.value
    confidence = jnp.where(is_confirmed, success, jnp.minimum(success, 0.5))
    confidence = jnp.where(is_fine & (weakest >= _MAYBE_GOOD), jnp.maximum(confidence, 0.2), confidence)
    confidence = jnp.where(is_open, 0.5, confidence)
    verdict = jnp.where(
        confidence >= ALIGNED,
        Verdict.aligned.value,
        jnp.where(confidence <= NOT_ALIGNED, Verdict.not_aligned.value, Verdict.uncertain.value),
    )
    top1 = estimate_recall(evidence, num_found=1, index_size=INDEX_SIZE, calibration=calibration)[..., 0]
    return Judgement(
        verdict=verdict.astype(jnp.int32),
        reason=reason.astype(jnp.int32),
        confidence=confidence,
        # The curve was fitted on fits that found the truth.
        estimated_top1=success * top1,
    )


def estimate_recall(
    evidence: Evidence, *, num_found: int, index_size: int | jax.Array, calibration: Calibration = CALIBRATION
) -> jax.Array:
    """Estimate, without a label, how many rows find their true partner among the nearest rows of an index: ``[2]``.

    Args:
        evidence: `Evidence` of a map that is ``aligned``; of others the estimate means nothing.
        num_found: number of nearest rows among which the partner must be, from 1 to 10.
        index_size: number of rows of the index.
        calibration: `Calibration`.

    Returns:
        ``[2]``: for rows of X that look for their partner in an index of rows of Y, and for rows of Y in an index of
        mapped rows of X.

    Example:
        >>> import dataclasses, jax.numpy as jnp
        >>> values = {field.name: jnp.ones(()) for field in dataclasses.fields(Evidence)}
        >>> values |= {"closeness": jnp.full(4, 0.5), "cross_each": jnp.ones(2), "num_rows": jnp.array(1_000)}
        >>> recall = estimate_recall(Evidence(**values), num_found=1, index_size=20_000)
        >>> bool(recall[0] < estimate_recall(Evidence(**values), num_found=10, index_size=20_000)[0])
        True
    """
    dtype = evidence.score.dtype
    # The denser the rows of the index around a query, the harder it is to be the nearest.
    density = evidence.cross_each - evidence.cross[..., None]
    closeness = jnp.clip(jnp.nan_to_num(evidence.closeness[..., _FINER]), 0, 0.99)
    # Maps that were fitted on more rows are better than their closeness.
    log_rows = jnp.log(jnp.maximum(evidence.num_rows, 1).astype(dtype))
    logit = (
        calibration.recall_offset
        - calibration.recall_closeness * jnp.log(1 - closeness)
        + calibration.recall_log_rows * log_rows
        + calibration.recall_log_found * jnp.log(jnp.asarray(num_found, dtype))
        - calibration.recall_log_size * jnp.log(jnp.asarray(index_size, dtype) / INDEX_SIZE)
    )
    return jax.nn.sigmoid(logit[..., None] + calibration.recall_density * density)


def fine_agreement(maps: jax.Array, x: jax.Array) -> jax.Array:
    """Agreement of every two of ``maps [r, d_x, d_y]`` in the finer directions of the rows ``x [n, d_x]``: ``[r, r]``.

    The cosine of two maps without the first quarter of the principal directions of X, in which every other direction
    has the same weight. Maps that match the same topics and not the same texts agree in the first directions only.
    """
    directions, num_used = _principal_directions(x)
    place = jnp.arange(directions.shape[1], dtype=jnp.int32)
    is_finer = (place >= num_used // 4) & (place < num_used)
    finer = jnp.einsum("ab,rac->rbc", jnp.where(is_finer[None], directions, 0), maps)
    inner = jnp.einsum("rbc,sbc->rs", finer, finer)
    return cosines(inner)
