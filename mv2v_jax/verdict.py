"""The verdict on a fit: did it work, how sure is that, and how well does the map retrieve, all without a label."""

import enum

import jax
import jax.numpy as jnp

from mv2v_jax.pytree import pytree
from mv2v_jax.types import Evidence


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
_FEWEST_HELD_OUT = 50


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
    confidence = jnp.where(evidence.num_rows >= _FEWEST_HELD_OUT, confidence, 0.5)
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
