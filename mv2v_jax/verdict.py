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


# Logistic calibration of success (FOSCTTM below 0.05) and straight line for top-1, both in the score of held-out rows;
# fitted on one half of the conditions of benchmarks/verdict.py and reported on the other.
_CONFIDENCE_MIDPOINT, _CONFIDENCE_SLOPE = 0.40, 20.0
_TOP1_AT_MIDPOINT, _TOP1_SLOPE = 0.3, 1.5
_ALIGNED, _NOT_ALIGNED = 0.9, 0.1
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


def judge(evidence: Evidence) -> Judgement:
    """Turn evidence from held-out rows into a verdict; `Verdict.uncertain` where too few rows were held out."""
    distance = evidence.score - _CONFIDENCE_MIDPOINT
    confidence = jax.nn.sigmoid(_CONFIDENCE_SLOPE * distance)
    confidence = jnp.where(evidence.num_rows >= _FEWEST_HELD_OUT, confidence, 0.5)
    verdict = jnp.where(
        confidence >= _ALIGNED,
        Verdict.aligned.value,
        jnp.where(confidence <= _NOT_ALIGNED, Verdict.not_aligned.value, Verdict.uncertain.value),
    )
    return Judgement(
        verdict=verdict.astype(jnp.int32),
        confidence=confidence,
        estimated_top1=jnp.clip(_TOP1_AT_MIDPOINT + _TOP1_SLOPE * distance, 0, 1),
    )
