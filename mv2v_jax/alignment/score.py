"""Evidence from unlabelled rows: how far a map carries rows it has never seen to where the other space has rows.

What a fit maximises says nothing about the map: with a few thousand rows it learns the very pairs it was matched by,
and a wrong map can end with the higher objective. So some rows of both spaces are kept out of the fit, and mapped rows
are asked how close their nearest rows of the other space are, on a scale that the data itself gives: 0 is what the same
rows reach after a reflection that keeps every variance and breaks the geometry (the null), 1 is how close rows of one
space lie to each other, as if the encoders were the same.

A space whose rows crowd into few directions lets any map come close. Where the two geometries have nothing in common,
though, every anchor set was matched in its own way; so how far the sets agree is a factor of the score.
"""

import enum

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.space import HoldOut
from mv2v_jax.ops.knn import nearness
from mv2v_jax.ops.masked import unit_rows
from mv2v_jax.ops.pytree import pytree


@pytree
class Evidence:
    """What held-out rows, and the anchor sets it came from, say of a map. Scalars.

    Attributes:
        cross: mean cosine of mapped held-out rows with their nearest fitted rows of the other space, both directions.
        within: the same with fitted rows of their own space.
        null: the same as ``cross`` after reflections that keep every variance, the mean of several.
        null_deviation: standard deviation of those.
        num_rows: int32, held-out rows of the smaller space; where there are none, everything else is 0 but
            ``anchor_agreement``.
        closeness: ``(cross - null) / (within - null)``: 0 for a map that found nothing, 1 where mapped rows look like
            rows of the target. The scale is at least five ``null_deviation`` long.
        anchor_agreement: median of `AlignInfo.anchor_agreement`: 1 where all anchor sets say the same.
        score: ``closeness`` times ``anchor_agreement``, which counts as 0 where it is negative.
    """

    cross: jax.Array
    within: jax.Array
    null: jax.Array
    null_deviation: jax.Array
    num_rows: jax.Array
    closeness: jax.Array
    anchor_agreement: jax.Array
    score: jax.Array


# Fitted rows that held-out rows are compared with; more would say the same and cost more.
_BANK_ROWS = 8_192


# Nearness is the mean over so many groups of them.
_NUM_GROUPS = 10


_NUM_NULLS = 8


# The scale from null to within is at least this many deviations of the nulls long: in a cloud without geometry it would
# be no longer than chance.
_MIN_ROOM = 5


def gather_evidence(key: jax.Array, x: HoldOut, y: HoldOut, W: jax.Array, set_agreement: jax.Array) -> Evidence:
    """Score the map ``W [d_x, d_y]`` on held-out rows.

    Args:
        key: draws the reflections.
        x: rows of the source.
        y: rows of the target.
        W: the map, before directions are weighted.
        set_agreement: ``[s]``, of the anchor sets it came from, see `anchors.set_agreement`.
    """
    # A single set has no other to agree with.
    agreement = jnp.median(set_agreement) if set_agreement.shape[0] > 1 else jnp.ones((), W.dtype)
    num_rows = jnp.asarray(min(x.held_out.shape[0], y.held_out.shape[0]), jnp.int32)
    if not (x.held_out.shape[0] and y.held_out.shape[0]):
        nothing = jnp.zeros((), W.dtype)
        return Evidence(
            cross=nothing,
            within=nothing,
            null=nothing,
            null_deviation=nothing,
            num_rows=num_rows,
            closeness=nothing,
            anchor_agreement=agreement,
            score=nothing,
        )
    queries_x, bank_x = unit_rows(x.held_out @ W), unit_rows(x.fitted[:_BANK_ROWS] @ W)
    queries_y, bank_y = y.held_out, y.fitted[:_BANK_ROWS]

    def nearness_of(queries, bank):
        return nearness(queries, bank, num_groups=_NUM_GROUPS).mean()

    directions = jnp.linalg.eigh(bank_y.T @ bank_y)[1]

    def reflected(key):
        signs = jax.random.rademacher(key, (directions.shape[0],), dtype=W.dtype)
        reflection = (directions * signs[None]) @ directions.T
        return (nearness_of(queries_x @ reflection, bank_y) + nearness_of(queries_y @ reflection, bank_x)) / 2

    nulls = jax.lax.map(reflected, jax.random.split(key, _NUM_NULLS))
    cross = (nearness_of(queries_x, bank_y) + nearness_of(queries_y, bank_x)) / 2
    within = (nearness_of(queries_x, bank_x) + nearness_of(queries_y, bank_y)) / 2
    null = nulls.mean()
    closeness = (cross - null) / jnp.maximum(within - null, _MIN_ROOM * (nulls.std() + jnp.finfo(W.dtype).eps))
    return Evidence(
        cross=cross,
        within=within,
        null=null,
        null_deviation=nulls.std(),
        num_rows=num_rows,
        closeness=closeness,
        anchor_agreement=agreement,
        score=closeness * jnp.maximum(agreement, 0),
    )


class Verdict(enum.IntEnum):
    """What a fit is called; `Judgement.verdict` holds the number."""

    not_aligned = 0
    uncertain = 1
    aligned = 2


# Logistic calibration of success (FOSCTTM below 0.05) in the score and in the agreement of restarts:
# benchmarks/verdict.py --calibrate fits all of these on one part of its conditions. Restarts that found the truth agree
# on it, wrong ones are wrong each in their own way, even where they score well.
_SCORE_MIDPOINT, _SCORE_SLOPE = 0.329, 65.6


_AGREEMENT_MIDPOINT, _AGREEMENT_SLOPE = 0.137, 40.0


# Another logistic curve for top-1, over fits that are called aligned: in the closeness, and in the logarithm of the
# number of held-out rows, for nearest rows are asked more of where there are more of them.
_TOP1_OFFSET, _TOP1_CLOSENESS, _TOP1_LOG_ROWS = -11.91, 13.34, 0.88


ALIGNED, NOT_ALIGNED = 0.85, 0.15


# Fewer held-out rows than this are no evidence either way.
_MIN_HELD_OUT = 50


@pytree
class Judgement:
    """A verdict and what it rests on. Scalars.

    Attributes:
        verdict: int32, a `Verdict`.
        confidence: calibrated probability, from 0 to 1, that true pairs would have a FOSCTTM below 0.05.
        estimated_top1: estimate of the top-1 that true pairs would give, among some thousands of rows.
    """

    verdict: jax.Array
    confidence: jax.Array
    estimated_top1: jax.Array


def judge(evidence: Evidence, agreement: jax.Array | None = None) -> Judgement:
    """Turn evidence into a verdict.

    Args:
        evidence: of the fit.
        agreement: scalar, how far the map agrees with those of other restarts, from -1 to 1. Without it a fit can be
            called `Verdict.not_aligned`, but no better than `Verdict.uncertain`; so can one with few held-out rows.
    """
    success = jax.nn.sigmoid(_SCORE_SLOPE * (evidence.score - _SCORE_MIDPOINT))
    if agreement is not None:
        success *= jax.nn.sigmoid(_AGREEMENT_SLOPE * (agreement - _AGREEMENT_MIDPOINT))
    log_rows = jnp.log(jnp.maximum(evidence.num_rows, 1).astype(evidence.score.dtype))
    top1 = jax.nn.sigmoid(_TOP1_OFFSET + _TOP1_CLOSENESS * evidence.closeness + _TOP1_LOG_ROWS * log_rows)
    confidence = jnp.minimum(success, 0.5) if agreement is None else success
    confidence = jnp.where(evidence.num_rows >= _MIN_HELD_OUT, confidence, 0.5)
    verdict = jnp.where(
        confidence >= ALIGNED,
        Verdict.aligned.value,
        jnp.where(confidence <= NOT_ALIGNED, Verdict.not_aligned.value, Verdict.uncertain.value),
    )
    return Judgement(
        verdict=verdict.astype(jnp.int32),
        confidence=confidence,
        # The curve is that of fits which found the truth.
        estimated_top1=top1 * success,
    )
