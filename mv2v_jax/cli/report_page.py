"""What a report says at its top, in words: the verdict, whether it is confirmed, estimates, and the next commands."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mv2v_jax.alignment.api import Restarts
from mv2v_jax.alignment.score import CALIBRATION, INDEX_SIZE, Evidence, Verdict
from mv2v_jax.cli.verdict_text import (
    describe_verdict,
    estimate_recalls,
    list_reasons,
    next_steps,
    read_evidence,
)
from mv2v_jax.config import Config
from mv2v_jax.report.measure import Measured, measure
from mv2v_jax.report.page import LITTLE, Heading, Texts, write_page
from mv2v_jax.report.searches import Searches, searches_of_fit
from mv2v_jax.runs.judgement import list_evidence
from mv2v_jax.version import __version__

_LIGHTS = {
    Verdict.aligned.name: ("green", "Aligned"),
    Verdict.uncertain.name: ("amber", "Uncertain"),
    Verdict.not_aligned.name: ("red", "Not aligned"),
}
_UNKNOWN = "grey", "No verdict"
_NO_VERDICT = (
    "The file of this map holds no verdict; mv2v align and mv2v stability write one. What the searches on this page "
    "found is all that is known."
)
# Facts of a map that the page shows, by their names there.
_SHOWN = {
    "n": "rows of X",
    "m": "rows of Y",
    "d_x": "dimensions of X",
    "d_y": "dimensions of Y",
    "preset": "preset",
    "seed": "seed",
    "restarts": "restarts",
    "settled": "settled restarts",
    "second_search": "second search",
    "pairs": "known pairs",
    "digest_x": "digest of X",
    "digest_y": "digest of Y",
    "mv2v_jax_version": "version",
    "device": "device",
    "zero_rows_x": "zero rows of X",
    "zero_rows_y": "zero rows of Y",
    "duplicate_rows_x": "repeated rows of X",
    "duplicate_rows_y": "repeated rows of Y",
}


class Files(NamedTuple):
    """Names of files that the commands on a page are about."""

    x: str
    y: str
    map: Path


def report_on_fit(
    output: Path,
    fits: Restarts,
    config: Config,
    *,
    data: tuple[Any, Any, Texts],
    facts: Mapping[str, Any],
    files: Files,
    pairs: tuple[Any, Any] | None = None,
) -> None:
    """Write the report of a fit whose maps were kept (``keep="all"``), by its own restarts.

    Args:
        output: file of the page.
        fits: the fit.
        config: its config.
        data: rows of X and of Y, and their texts.
        facts: facts of `judge_fit`, and others to show.
        files: names of files.
        pairs: true pairs that the map is judged on, if any.
    """
    x, y, texts = data
    searches = searches_of_fit(fits)
    measured = measure(fits.best.map, x, y, config, searches, pairs)
    evidence = fits.best.evidence
    found = {"held_out_rows": int(evidence.num_rows), "evidence": list_evidence(evidence)}
    known = {**facts, **found, "mv2v_jax_version": __version__}
    write_page(output, make_heading(known, measured, searches, files), measured, searches, texts)


def make_heading(
    facts: Mapping[str, Any], measured: Measured, searches: Searches, files: Files, cautions: Sequence[str] = ()
) -> Heading:
    """What stands at the top of a report: the verdict on the map, and whether the searches confirm it.

    Args:
        facts: facts of the map, from `read_facts` or `judge_fit`; ``index_size`` among them is the one that recall is
            estimated for.
        measured: what was measured.
        searches: the searches that it was measured with.
        files: names of files.
        cautions: what else to know before the page is believed.
    """
    is_judged = {"verdict", "confidence", "estimated_top1"} <= facts.keys()
    light, word = _LIGHTS.get(str(facts.get("verdict")), _UNKNOWN) if is_judged else _UNKNOWN
    confirmed = measured.confirmed
    if searches.are_new and confirmed is not None and confirmed < CALIBRATION.agreement_midpoint:
        cautions = [_describe_unconfirmed(confirmed, searches), *cautions]
        if light == "green":
            extent = "not confirmed here" if confirmed < LITTLE else "confirmed here in part"
            light, word = "amber", f"Aligned by its file, {extent}"
    evidence = read_evidence(facts) or searches.best_evidence()
    closeness = facts.get("closeness")
    return Heading(
        title=str(files.map),
        light=light,
        word=word,
        sentences=[describe_verdict(facts) if is_judged else _NO_VERDICT],
        cautions=cautions,
        estimates=_list_estimates(evidence, facts.get("index_size", INDEX_SIZE)) if light == "green" else [],
        provenance=[(name, _format(facts[fact])) for fact, name in _SHOWN.items() if facts.get(fact) is not None],
        settings=_list_settings(facts.get("config")),
        reasons=[(name, _format(value), note) for name, value, note in list_reasons(facts)],
        commands=[(purpose, shlex.join(map(str, words))) for purpose, words in next_steps(facts, *files)],
        closeness=closeness if isinstance(closeness, list) else None,
    )


def _describe_unconfirmed(confirmed: float, searches: Searches) -> str:
    others = searches.agreement[~np.eye(len(searches.agreement), dtype=bool)]
    if confirmed >= LITTLE:
        return (
            f"The searches of this page confirm the map in part: they agree with it by {confirmed:.2f}, and "
            f"{CALIBRATION.agreement_midpoint:.2g} is needed. Searches of fewer rows, or of other ones, agree less; "
            "give the rows that it was fitted on."
        )
    start = f"The searches of this page do not confirm the map: they agree with it by {confirmed:.2f}"
    if others.size and np.median(others) >= CALIBRATION.agreement_midpoint:
        return (
            f"{start}, and with each other by {np.median(others):.2f}. They found another map of these rows; check "
            "that these are rows of the encoders that the map was fitted on."
        )
    return (
        f"{start}, and they do not agree with each other either. Either the map is wrong, or there are too few rows "
        "here to find it again; give the rows that it was fitted on."
    )


def _list_estimates(evidence: Evidence, index_size: int) -> list[tuple[str, str]]:
    found = estimate_recalls(evidence, index_size)
    directions = (("", "X to Y"), ("_back", "Y to X"))
    return [
        (
            f"estimated recall@{number} among {index_size:,} rows, {name}",
            f"{found[f'estimated_recall{number}{back}']:.0%}",
        )
        for number in (1, 10)
        for back, name in directions
    ]


def _list_settings(config: Any, stage: str = "") -> list[tuple[str, str]]:
    """The settings of a config, as a map file holds it, by the names of its stages."""
    if not isinstance(config, dict):
        return []
    listed = []
    for name, value in config.items():
        nested = isinstance(value, dict)
        listed += _list_settings(value, f"{stage}{name}.") if nested else [(f"{stage}{name}", _format(value))]
    return listed


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(value)
