"""The verdict on a fit and the numbers that it rests on, as values that JSON can hold."""

import dataclasses
from typing import Any

import numpy as np

from mv2v_jax.alignment.results import AlignResult
from mv2v_jax.alignment.score import Evidence, Reason, Verdict


def list_judgement(best: AlignResult, *, num_restarts: int) -> dict[str, Any]:
    """Facts of a result that was chosen among ``num_restarts`` restarts."""
    evidence = best.evidence
    return {
        "verdict": Verdict(int(best.verdict)).name,
        "reason": Reason(int(best.reason)).name,
        "confidence": float(best.confidence),
        "estimated_top1": float(best.estimated_top1),
        "score": float(evidence.score),
        "closeness": [float(value) for value in evidence.closeness],
        **{
            name: float(getattr(evidence, name))
            for name in ("local_structure", "local_closeness", "symmetry", "distinct")
        },
        "restarts": num_restarts,
        "restart_agreement": None if num_restarts == 1 else float(best.agreement),
    }


def list_evidence(evidence: Evidence) -> dict[str, Any]:
    """All evidence, for the metadata of a map."""
    return {field.name: np.asarray(getattr(evidence, field.name)).tolist() for field in dataclasses.fields(Evidence)}
