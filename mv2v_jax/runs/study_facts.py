"""What a study finds out about its searches: their stability, one line per restart, and the summary."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.alignment.choose import agreement_with_others, map_agreement, searched_maps
from mv2v_jax.alignment.results import AlignResult, Search
from mv2v_jax.alignment.score import Evidence, Reason, Verdict, judge
from mv2v_jax.alignment.space import join_spaces
from mv2v_jax.config import Config
from mv2v_jax.evaluation.stability import Stability, compare_maps
from mv2v_jax.runs.judgement import list_judgement


@functools.partial(jax.jit, static_argnames="num_rows_y")
def compare_searches(searched: Search, config: Config, *, num_rows_y: int) -> Stability:
    """Compare all searches in the directions that were searched, on all rows in their order in the data.

    The rows of Y after ``num_rows_y`` are padding, which no row may have as its partner.
    """
    prepared = searched.prepared
    rows = prepared.subspace.project(join_spaces(prepared.source, prepared.target))
    return compare_maps(searched_maps(searched.found, config), rows.x, rows.y[:num_rows_y])


@jax.jit
def _judge_all(evidence: Evidence, agreement: jax.Array):
    """Confidence and verdict of every restart as if it had been chosen, ``[r]`` each."""

    def one(evidence, number):
        return judge(evidence, agreement_with_others(agreement, number))

    return jax.vmap(one)(evidence, jnp.arange(agreement.shape[0]))


@jax.jit
def agreement_with_chosen(resampled: Search, whole: Search, config: Config) -> jax.Array:
    """Cosine, on all rows of X, of the map from resampled rows with the chosen map from all rows."""
    both = ((resampled, 0), (whole, whole.choice.chosen))
    maps = [
        searched.prepared.subspace.extend(searched_maps(searched.found, config)[number]) for searched, number in both
    ]
    return map_agreement(jnp.stack(maps), whole.prepared.source.rows)[0, 1]


def list_restarts(searched: Search, basins: np.ndarray | None = None) -> list[dict[str, Any]]:
    """One dict per restart: its basin if known, its scores, and its verdict as if it had been chosen."""
    evidence, choice = searched.found.evidence, searched.choice
    judged = _judge_all(evidence, choice.agreement)
    columns = {
        "score": evidence.score,
        "coarse_closeness": evidence.closeness[:, 0],
        "confidence": judged.confidence,
        "agreement_with_chosen": choice.agreement[choice.chosen],
    }
    values = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    return [
        {
            "restart": number,
            **({} if basins is None else {"basin": int(basins[number])}),
            "verdict": Verdict(int(verdict)).name,
            "reason": Reason(int(reason)).name,
            **{name: float(column[number]) for name, column in values.items()},
        }
        for number, (verdict, reason) in enumerate(zip(judged.verdict.tolist(), judged.reason.tolist(), strict=True))
    ]


def collect_facts(
    result: AlignResult,
    chosen: int,
    listed: list[dict[str, Any]],
    stability: Stability,
    curve: list[dict[str, Any]],
    resampled: list[float],
) -> dict[str, Any]:
    """`Study.facts`."""
    others = ~np.eye(len(listed), dtype=bool)
    compared = {name: getattr(stability, name)[others] for name in ("agreement", "distance", "angle", "neighbors")}
    return {
        **list_judgement(result, num_restarts=len(listed)),
        "held_out_rows": int(result.evidence.num_rows),
        "chosen": chosen,
        "basins": _list_basins(listed),
        **{name: _summarize(values) for name, values in compared.items()},
        "row_stability": _summarize(stability.row_stability),
        "sizes": curve,
        "bootstrap_agreement": _summarize(resampled) if resampled else None,
    }


def _list_basins(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One dict per basin: its number, its size and the scores of its restarts."""
    scores: dict[int, list[float]] = {}
    for row in listed:
        scores.setdefault(row["basin"], []).append(row["score"])
    return [
        {"basin": basin, "size": len(scores[basin]), "score": _summarize(scores[basin])} for basin in sorted(scores)
    ]


def summarize_restarts(listed: list[dict[str, Any]]) -> dict[str, Any]:
    """Number of restarts, share of them that are called aligned, and their scores."""
    return {
        "restarts": len(listed),
        "aligned": sum(row["verdict"] == Verdict.aligned.name for row in listed) / len(listed),
        "score": _summarize([row["score"] for row in listed]),
    }


def _summarize(values: Any) -> dict[str, float]:
    return {"median": float(np.median(values)), "lowest": float(np.min(values)), "highest": float(np.max(values))}
