"""The verdict on a fit for people: what it means, why it was given, and the facts that it rests on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mv2v_jax.alignment.score import AGREEMENT_MIDPOINT, MIN_HELD_OUT, SCORE_MIDPOINT, Verdict
from mv2v_jax.runs.compiled import TimedFit

_ADVICE = "Do not use the map before you have checked it on true pairs."


def judge_fit(fit: TimedFit) -> dict[str, Any]:
    """The verdict on a fit and the numbers that it rests on, for people and for JSON."""
    best, scores = fit.result.best, fit.result.evidence.score
    chosen = int(fit.result.chosen)
    others = np.delete(np.asarray(fit.result.agreement)[chosen], chosen)
    return {
        "verdict": Verdict(int(best.verdict)).name,
        "confidence": float(best.confidence),
        "estimated_top1": float(best.estimated_top1),
        "score": float(best.evidence.score),
        "restarts": len(scores),
        "restart_scores": [float(score) for score in scores],
        "restart_chosen": chosen,
        "restart_agreement": float(np.median(others)) if len(others) else None,
    }


def describe_verdict(judged: Mapping[str, Any]) -> str:
    """The verdict and what it means, in two sentences; the deciding reason unless it is ``aligned``.

    Args:
        judged: facts of `judge_fit`; those missing are left out of the reason.
    """
    sure = f"(confidence {judged['confidence']:.2f})"
    if judged["verdict"] == Verdict.aligned.name:
        return (
            f"aligned {sure}: about {judged['estimated_top1']:.0%} of rows should find their true partner first among "
            "a few thousand rows. This is an estimate without known pairs; check a few true pairs if you have any."
        )
    reason = _deciding_reason(judged)
    if judged["verdict"] == Verdict.uncertain.name:
        return f"uncertain {sure} whether the spaces were aligned: {reason}. {_ADVICE}"
    return f"not aligned {sure}: {reason}. {_ADVICE}"


def lacks_rows(judged: Mapping[str, Any]) -> bool:
    """Whether too few rows were held out for any verdict but uncertain."""
    held_out = judged.get("held_out_rows")
    return held_out is not None and held_out < MIN_HELD_OUT


def _deciding_reason(judged: Mapping[str, Any]) -> str:
    """The one fact that decided against the verdict ``aligned``."""
    if lacks_rows(judged):
        return (
            f"only {judged['held_out_rows']} rows per space were held out to score the map, and a verdict needs "
            f"{MIN_HELD_OUT}, a tenth of {10 * MIN_HELD_OUT} rows"
        )
    agreement, score = judged.get("restart_agreement"), judged.get("score")
    if judged["verdict"] == Verdict.uncertain.name:
        if agreement is None and judged.get("restarts") == 1:
            return "a single restart has no other map to agree with"
        return "the score and the agreement of the restarts are too close to what wrong maps reach"
    if score is None or agreement is None:
        return "held-out rows land hardly nearer to the other space than by chance, or the restarts disagree"
    if not score > SCORE_MIDPOINT:
        return "held-out rows land hardly nearer to the other space than by chance"
    return "the restarts found different maps"


def list_reasons(judged: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Every number that the verdict rests on: its name, its value and how to read it; unknown ones are left out."""
    agreement = judged.get("restart_agreement")
    reasons = [
        (
            "score",
            judged.get("score"),
            "how close mapped held-out rows come to rows of the other space, from 0 by chance to 1; most maps that "
            f"score above {SCORE_MIDPOINT} are right",
        ),
        (
            "restart_agreement",
            "none" if agreement is None and judged.get("restarts") == 1 else agreement,
            "median cosine of the map with those of the other restarts; most maps that agree above "
            f"{AGREEMENT_MIDPOINT} are right",
        ),
        (
            "agreement",
            (judged.get("agreement") or {}).get("median"),
            f"median cosine of the maps of all pairs of restarts; most maps that agree above {AGREEMENT_MIDPOINT} are "
            "right",
        ),
        (
            "held_out_rows",
            judged.get("held_out_rows"),
            f"rows per space that the score was measured on; with fewer than {MIN_HELD_OUT} the verdict is uncertain",
        ),
        (
            "restarts",
            judged.get("restarts"),
            "searches from different random draws; with a single one the verdict is uncertain at best",
        ),
    ]
    return [(name, value, note) for name, value, note in reasons if value is not None]
