"""The score of a map from unlabelled rows, and the verdict on it.

The objective of a fit cannot judge the map: with a few thousand rows a fit overfits the pairs it was matched by, and a
wrong map can end with the higher objective. Therefore some rows of both spaces are held out. The score measures how
close mapped held-out rows come to rows of the other space, on a scale that the data provides. On this scale, 0 is the
closeness of the same rows after a reflection (the null), which keeps every variance and breaks the geometry. 1 is the
closeness of rows of one space to each other, as if both encoders were the same.

In a space whose rows crowd into few directions any map comes close. But where two geometries have nothing in common,
each anchor set is matched in a different way. Therefore the agreement of the anchor sets is a factor of the score.
"""

import enum

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.ops.knn import nearness
from mv2v_jax.ops.masked import unit_rows
from mv2v_jax.ops.pytree import pytree


@pytree
class Evidence:
    """Label-free evidence for a map, from held-out rows and from its anchor sets. Scalars.

    Attributes:
        cross: mean cosine of mapped held-out rows with their nearest fitted rows of the other space, both directions.
        within: the same with the nearest fitted rows of their own space.
        null: mean of ``cross`` over several reflections that keep every variance.
        null_deviation: standard deviation of ``cross`` over these reflections.
        num_rows: int32, number of held-out rows of the smaller space. Without held-out rows all other fields are 0,
            except ``anchor_agreement``.
        closeness: ``(cross - null) / (within - null)``: 0 for a map that found nothing, 1 where mapped rows look like
            rows of the target. The denominator is at least five times ``null_deviation``.
        anchor_agreement: median of `AnchorInfo.agreement`: 1 where all anchor sets are matched alike.
        score: ``closeness`` times ``anchor_agreement``; a negative agreement counts as 0.
    """

    cross: jax.Array
    within: jax.Array
    null: jax.Array
    null_deviation: jax.Array
    num_rows: jax.Array
    closeness: jax.Array
    anchor_agreement: jax.Array
    score: jax.Array


# Number of fitted rows that held-out rows are compared with; more would cost more and change little.
_BANK_ROWS = 8_192
# Nearness is the mean over this many groups of fitted rows.
_NUM_GROUPS = 10
_NUM_NULLS = 8
# The scale from null to within is at least this many deviations of the nulls long. In a cloud without geometry it would
# otherwise be as short as chance makes it.
_MIN_ROOM = 5


def gather_evidence(
    key: jax.Array, fitted: TwoSpaces, held_out: TwoSpaces, W: jax.Array, set_agreement: jax.Array
) -> Evidence:
    """Score the map ``W [d_x, d_y]`` on held-out rows.

    Args:
        key: random key; draws the reflections.
        fitted: centred unit rows that the map was fitted on.
        held_out: centred unit rows that the map was not fitted on.
        W: ``[d_x, d_y]``, the map before directions are weighted.
        set_agreement: ``[s]``, agreement of the anchor sets it comes from, see `anchors.set_agreement`.
    """
    # A single set has no other set to agree with.
    agreement = jnp.median(set_agreement) if set_agreement.shape[0] > 1 else jnp.ones((), W.dtype)
    num_rows = jnp.asarray(held_out.num_rows, jnp.int32)
    if not held_out.num_rows:
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
    queries_x, bank_x = unit_rows(held_out.x @ W), unit_rows(fitted.x[:_BANK_ROWS] @ W)
    queries_y, bank_y = held_out.y, fitted.y[:_BANK_ROWS]

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
    """The verdict on a fit; `AlignResult.verdict` holds the number."""

    not_aligned = 0
    uncertain = 1
    aligned = 2


# Logistic calibration of success (FOSCTTM below 0.05) by the score and by the agreement of restarts:
# benchmarks/verdict.py --calibrate fits these constants on some of its conditions. Restarts that found the truth agree
# with each other; wrong ones differ, even where they score well.
SCORE_MIDPOINT, _SCORE_SLOPE = 0.329, 65.6
AGREEMENT_MIDPOINT, _AGREEMENT_SLOPE = 0.137, 40.0
# Logistic calibration of top-1 over fits that are called aligned: by the closeness and by the logarithm of the number
# of held-out rows, because being the nearest of more rows is harder.
_TOP1_OFFSET, _TOP1_CLOSENESS, _TOP1_LOG_ROWS = -11.91, 13.34, 0.88
ALIGNED, NOT_ALIGNED = 0.85, 0.15
# Fewer held-out rows than this are too few for a verdict.
MIN_HELD_OUT = 50


@pytree
class Judgement:
    """A verdict, its confidence and an estimate of quality. Scalars.

    Attributes:
        verdict: int32, a `Verdict`.
        confidence: calibrated probability, from 0 to 1, that true pairs would have a FOSCTTM below 0.05.
        estimated_top1: estimate of the top-1 that true pairs would give, among a few thousand rows.
    """

    verdict: jax.Array
    confidence: jax.Array
    estimated_top1: jax.Array


def judge(evidence: Evidence, agreement: jax.Array | None = None) -> Judgement:
    """Turn evidence into a verdict.

    Args:
        evidence: `Evidence` of the fit.
        agreement: scalar from -1 to 1, agreement of the map with those of other restarts. Without it, or with few
            held-out rows, the verdict is at best `Verdict.uncertain`.
    """
    success = jax.nn.sigmoid(_SCORE_SLOPE * (evidence.score - SCORE_MIDPOINT))
    if agreement is not None:
        success *= jax.nn.sigmoid(_AGREEMENT_SLOPE * (agreement - AGREEMENT_MIDPOINT))
    log_rows = jnp.log(jnp.maximum(evidence.num_rows, 1).astype(evidence.score.dtype))
    top1 = jax.nn.sigmoid(_TOP1_OFFSET + _TOP1_CLOSENESS * evidence.closeness + _TOP1_LOG_ROWS * log_rows)
    confidence = jnp.minimum(success, 0.5) if agreement is None else success
    confidence = jnp.where(evidence.num_rows >= MIN_HELD_OUT, confidence, 0.5)
    verdict = jnp.where(
        confidence >= ALIGNED,
        Verdict.aligned.value,
        jnp.where(confidence <= NOT_ALIGNED, Verdict.not_aligned.value, Verdict.uncertain.value),
    )
    return Judgement(
        verdict=verdict.astype(jnp.int32),
        confidence=confidence,
        # The curve was fitted on fits that found the truth.
        estimated_top1=top1 * success,
    )
