"""The verdict on a fit for people: what it means, why it was given, what to do, and the facts that it rests on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mv2v_jax.alignment.score import (
    CALIBRATION,
    INDEX_SIZE,
    MIN_DISTINCT,
    MIN_HELD_OUT,
    MIN_LOCAL_CLOSENESS,
    MIN_LOCAL_STRUCTURE,
    MIN_SYMMETRY,
    Evidence,
    Reason,
    Verdict,
    estimate_recall,
)
from mv2v_jax.alignment.space import num_held_out
from mv2v_jax.cli.map_facts import parse_facts
from mv2v_jax.data.padding import padded_size
from mv2v_jax.runs.compiled import TimedFit
from mv2v_jax.runs.judgement import list_judgement

NOT_ALIGNED_EXIT = 3
_CHECK = "Do not use the map before you have checked it on true pairs."

# Per reason what was found, and what to do about it.
_REASONS = {
    Reason.only_coarse_structure: (
        "rows match in the main directions only, as where topics are matched and texts are not",
        "Use more rows, more restarts or known pairs.",
    ),
    Reason.ambiguous: (
        "another map is as good, because the cloud is symmetric or because the restarts found different maps that "
        "score well",
        "Only known pairs can decide between such maps.",
    ),
    Reason.too_few_rows: (
        "too few distinct rows were held out to score the map",
        "Use more rows.",
    ),
    Reason.unlike_distributions: (
        "rows come nearer to the other space than by chance, but the restarts found no common map",
        "Choose texts of the same kinds on both sides, in the same proportions, or use known pairs.",
    ),
    Reason.geometries_differ: (
        "held-out rows land hardly nearer to the other space than by chance",
        "Check that both files hold the same kind of text and that these encoders are comparable.",
    ),
    Reason.one_restart_only: ("a single restart has no other map to agree with", "Use at least two restarts."),
}


# Per reason that has several causes, those that a number tells: its name, its limit, what was found and what to do.
_CAUSES = {
    Reason.only_coarse_structure.name: (
        (
            "local_structure",
            MIN_LOCAL_STRUCTURE,
            "rows differ from their neighbours by noise alone, so that nothing tells which of them belong together",
            "More restarts will not help; use known pairs, or embeddings of longer and more varied texts.",
        ),
        (
            "local_closeness",
            MIN_LOCAL_CLOSENESS,
            "topics match and texts do not: rows differ from their neighbours in other ways on each side",
            "Check that both files hold texts of the same kind; use known pairs if they do.",
        ),
    ),
    Reason.ambiguous.name: (
        (
            "symmetry",
            MIN_SYMMETRY,
            "the cloud is symmetric, so that a mirrored or turned map is as good",
            "Only known pairs can decide between such maps.",
        ),
        (
            "restart_agreement",
            CALIBRATION.agreement_midpoint,
            "the restarts found different maps that score well",
            "Only known pairs can decide between such maps.",
        ),
    ),
    Reason.too_few_rows.name: (
        (
            "distinct",
            MIN_DISTINCT,
            "more than half of the held-out rows are copies of other rows, so that too few were left to score the map",
            "Remove the copies, or use more distinct rows.",
        ),
    ),
}


# More searches of the same rows would change nothing.
_NEED_PAIRS = {Reason.ambiguous.name, Reason.unlike_distributions.name, Reason.geometries_differ.name}
_SETTLED_BY_PAIRS = {found for _, _, found, _ in _CAUSES[Reason.only_coarse_structure.name]}


def judge_fit(fit: TimedFit, index_size: int | None = None) -> dict[str, Any]:
    """The verdict on a fit and the numbers that it rests on, for people and for JSON.

    Args:
        fit: the fit.
        index_size: number of rows of an index that recall is estimated for, if any.
    """
    best, scores = fit.result.best, fit.result.evidence.score
    judged = list_judgement(best, num_restarts=len(scores))
    # The agreement of the restarts comes after what it is about.
    agreement = judged.pop("restart_agreement")
    judged |= {"restart_scores": [float(score) for score in scores], "restart_chosen": int(fit.result.chosen)}
    facts = {**judged, "restart_agreement": agreement}
    if index_size is None:
        return facts
    return facts | {"index_size": index_size, **estimate_recalls(best.evidence, index_size)}


def estimate_recalls(evidence: Evidence, index_size: int) -> dict[str, float]:
    """Estimates of recall@1 and recall@10 from X to Y, and back."""
    recalls: dict[str, float] = {}
    for num_found in (1, 10):
        found = np.asarray(estimate_recall(evidence, num_found=num_found, index_size=index_size))
        recalls |= {f"estimated_recall{num_found}": float(found[0])}
        recalls |= {f"estimated_recall{num_found}_back": float(found[1])}
    return recalls


def read_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of a map as values, in their order, with the number of rows that were held out of its fit."""
    facts = parse_facts(metadata)
    return facts | _count_held_out(facts)


def read_evidence(facts: Mapping[str, Any]) -> Evidence | None:
    """The evidence in the facts of a map; ``None`` for maps of other origins and of other versions."""
    found = facts.get("evidence")
    names = {field.name for field in dataclasses.fields(Evidence)}
    if not isinstance(found, dict) or found.keys() != names:
        return None
    try:
        values: dict[str, Any] = {name: np.asarray(value, np.float32) for name, value in found.items()}
    except (TypeError, ValueError):
        return None
    return Evidence(**values)


def _count_held_out(facts: Mapping[str, Any]) -> dict[str, int]:
    """Rows per space that were held out of the fit, which follow from the numbers of rows and the config."""
    try:
        config = facts["config"]
        # Older versions call the maximum most_rows.
        max_rows = config["max_rows" if "max_rows" in config else "most_rows"]
        rows = min(padded_size(min(facts[name], max_rows)) for name in ("n", "m"))
        return {"held_out_rows": num_held_out(rows, config["held_out_rows"])}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def next_steps(judged: Mapping[str, Any], x_file: str, y_file: str, map_file: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """What to do next, by the verdict: what each command is for, and its words, ready to be typed."""
    step: tuple[str, tuple[Any, ...]]
    align = ("mv2v", "align", x_file, y_file, "-o", map_file)
    if judged.get("verdict") == Verdict.aligned.name:
        step = "Next, map rows of X into the space of Y:", ("mv2v", "apply", map_file, x_file, "-o", "mapped.npy")
    elif lacks_rows(judged) or judged.get("reason") == Reason.too_few_rows.name:
        purpose = f"Next, fit again with at least {10 * MIN_HELD_OUT} rows in X and in Y:"
        step = purpose, ("mv2v", "align", "MORE_X", "MORE_Y", "-o", map_file)
    elif judged.get("reason") == Reason.one_restart_only.name:
        step = "Next, search twice, so that one search can confirm the other:", (*align, "--restarts", 2)
    elif judged.get("reason") in _NEED_PAIRS or _deciding_reason(judged)[0] in _SETTLED_BY_PAIRS:
        step = "Next, fit again with known pairs, PX and PY, if you have some:", (*align, "--pairs", "PX", "PY")
    else:
        restarts = min(10_000, max(8, 4 * judged.get("restarts", 2)))
        purpose = "Next, search more often; more rows, or known pairs by --pairs PX PY, help as well:"
        step = purpose, (*align, "--restarts", restarts)
    evaluate = ("mv2v", "evaluate", map_file, "X_EVAL", "Y_EVAL")
    return [step, ("If you have true pairs that the fit has not seen, measure the map on them:", evaluate)]


def describe_verdict(judged: Mapping[str, Any]) -> str:
    """The verdict and what it means, in two sentences; the deciding reason and advice unless it is ``aligned``.

    Args:
        judged: facts of `judge_fit`; those missing are left out of the reason.
    """
    sure = f"(confidence {judged['confidence']:.2f})"
    if judged["verdict"] == Verdict.aligned.name:
        return (
            f"aligned {sure}: the restarts agree at every scale, and about {judged['estimated_top1']:.0%} of rows "
            f"should find their true partner first among {INDEX_SIZE:,} rows. This is an estimate without known pairs; "
            "check a few true pairs if you have any."
        )
    reason, advice = _deciding_reason(judged)
    is_open = judged["verdict"] == Verdict.uncertain.name
    start = f"uncertain {sure} whether the spaces were aligned" if is_open else f"not aligned {sure}"
    return f"{start}: {reason}. {advice}{' ' if advice else ''}{_CHECK}"


def lacks_rows(judged: Mapping[str, Any]) -> bool:
    """Whether too few rows were held out for any verdict but uncertain."""
    held_out = judged.get("held_out_rows")
    return held_out is not None and held_out < MIN_HELD_OUT


def _deciding_reason(judged: Mapping[str, Any]) -> tuple[str, str]:
    """The fact that decided against the verdict ``aligned``, and advice that fits it."""
    if lacks_rows(judged):
        needed = (
            f"only {judged['held_out_rows']} rows per space were held out to score the map, and a verdict needs "
            f"{MIN_HELD_OUT}, a tenth of {10 * MIN_HELD_OUT} rows"
        )
        return needed, _REASONS[Reason.too_few_rows][1]
    for name, limit, found, advice in _CAUSES.get(str(judged.get("reason")), ()):
        value = judged.get(name)
        if value is not None and value < limit:
            return found, advice
    reason = str(judged.get("reason"))
    if reason in Reason.__members__ and Reason[reason] in _REASONS:
        return _REASONS[Reason[reason]]
    # Files of earlier versions name no reason.
    return "held-out rows land hardly nearer to the other space than by chance, or the restarts disagree", ""


def list_reasons(judged: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Every number that the verdict rests on: its name, its value and how to read it; unknown ones are left out."""
    agreement = judged.get("restart_agreement")
    closeness = judged.get("closeness")
    reasons = [
        ("reason", judged.get("reason"), "what decided the verdict; the documentation lists all reasons"),
        (
            "closeness",
            " ".join(f"{value:.2f}" for value in closeness) if isinstance(closeness, list) else closeness,
            "how close mapped held-out rows come to those of the other space, 0 by chance, 1 at best: in all "
            f"directions, then in ever finer ones; right maps are above {CALIBRATION.closeness_midpoint} in all",
        ),
        (
            "score",
            judged.get("score"),
            "the third of these, by which the best restart is chosen",
        ),
        (
            "restart_agreement",
            "none" if agreement is None and judged.get("restarts") == 1 else agreement,
            "median cosine of the map with those of the other restarts in the finer directions; most maps that agree "
            f"above {CALIBRATION.agreement_midpoint} are right",
        ),
        (
            "agreement",
            (judged.get("agreement") or {}).get("median"),
            "median cosine of the maps of all pairs of restarts, in all directions",
        ),
        (
            "symmetry",
            judged.get("symmetry"),
            f"below {MIN_SYMMETRY} a mirrored or turned map would be as good, and the verdict is uncertain",
        ),
        (
            "local_structure",
            judged.get("local_structure"),
            f"below {MIN_LOCAL_STRUCTURE} rows differ from their neighbours by noise alone, and the verdict is "
            "uncertain",
        ),
        (
            "local_closeness",
            judged.get("local_closeness"),
            f"how much of that structure both spaces share; below {MIN_LOCAL_CLOSENESS} topics match and texts do not",
        ),
        ("distinct", judged.get("distinct"), "share of held-out rows that are no copy of another row"),
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
