"""The page of a report: pictures, texts and tables in one HTML file that loads nothing."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mv2v_jax.alignment.score import CALIBRATION
from mv2v_jax.data.atomic_files import atomic_path
from mv2v_jax.report import pictures
from mv2v_jax.report.measure import Measured
from mv2v_jax.report.regions import name_regions
from mv2v_jax.report.searches import Searches
from mv2v_jax.version import __version__

_MAX_TEXT = 300
# Agreement that is called little; right maps have more than CALIBRATION.agreement_midpoint.
LITTLE = 0.3


class Heading(NamedTuple):
    """What stands at the top of a report.

    Attributes:
        title: name of the map.
        light: ``green``, ``amber``, ``red`` or ``grey``.
        word: the verdict in a word or two.
        sentences: the reason and what to do.
        cautions: what to know before the page is believed.
        estimates: names of estimates and their values.
        provenance: names of facts and their values.
        settings: names of the settings of the fit and their values.
        reasons: name, value and meaning of every number that the verdict rests on.
        commands: what a command is for, and the command.
        closeness: per scale, that of the fit of the map; ``None`` if its file has none.
    """

    title: str
    light: str
    word: str
    sentences: Sequence[str]
    cautions: Sequence[str]
    estimates: Sequence[tuple[str, str]]
    provenance: Sequence[tuple[str, str]]
    settings: Sequence[tuple[str, str]]
    reasons: Sequence[tuple[str, str, str]]
    commands: Sequence[tuple[str, str]]
    closeness: Sequence[float] | None


class Texts(NamedTuple):
    """Texts of the rows of both files, by row; ``None`` without a file of them."""

    x: Sequence[str] | None
    y: Sequence[str] | None


def write_page(path: Path, heading: Heading, measured: Measured, searches: Searches, texts: Texts) -> None:
    """Write the page, whole or not at all."""
    text = render_page(heading, measured, searches, texts)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render_page(heading: Heading, measured: Measured, searches: Searches, texts: Texts) -> str:
    """The page as HTML. Everything that comes from a user is escaped by the template."""
    from bokeh.embed import components
    from bokeh.resources import Resources
    from jinja2 import Environment
    from markupsafe import Markup

    folder = resources.files("mv2v_jax") / "report"
    script, drawn = components(_draw(heading, measured, searches, texts))
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((folder / "page.html").read_text("utf-8")).render(
        heading=heading,
        figures=_key_figures(measured),
        drawn={name: Markup(part) for name, part in drawn.items()},
        bokeh=Markup(Resources(mode="inline", components=["bokeh"]).render()),
        script=Markup(script),
        style=Markup((folder / "page.css").read_text("utf-8")),
        code=Markup((folder / "page.js").read_text("utf-8")),
        rows=_list_rows(measured, texts),
        lonely=[(int(row), None if texts.x is None else texts.x[row][:_MAX_TEXT]) for row in measured.lonely],
        is_known=measured.agreement is not None,
        has_pairs=measured.ranks is not None,
        has_texts=texts.x is not None or texts.y is not None,
        num_rows=len(measured.rows),
        searches=_count_searches(searches),
        version=__version__,
    )


def _draw(heading: Heading, measured: Measured, searches: Searches, texts: Texts) -> dict[str, Any]:
    """Every picture, by name."""
    restarts = np.asarray(searches.evidence.closeness, np.float64)
    closeness = list(heading.closeness or restarts[searches.chosen])
    drawn = {
        "ruler": pictures.draw_ruler(closeness, restarts, pictures.aligned_from(searches.best_evidence())),
        "clouds": pictures.draw_clouds(measured, texts.x),
        "nearness": pictures.draw_nearness(measured),
        "hubs": pictures.draw_hubs(measured),
        "regions": pictures.draw_regions(measured.regions, name_regions(measured.regions, texts.y)),
        "matrix": pictures.draw_matrix(measured.map_agreement),
    }
    if measured.agreement is not None:
        drawn["agreement"] = pictures.draw_agreement(measured)
    if measured.ranks is not None:
        drawn["ranks"] = pictures.draw_ranks(measured)
    return drawn


def _key_figures(measured: Measured) -> list[tuple[str, str, str]]:
    """The few numbers that separate right maps from wrong ones: what they are, their values and their colours."""
    figures = []
    if measured.agreement is not None and measured.confirmed is not None:
        share = float(measured.agreement.mean())
        meaning = f"of held-out rows: other searches find the same neighbours (by chance: {measured.chance:.2%})"
        figures.append((meaning, f"{share:.0%}", _color_of(share)))
        meaning = "agreement of the map with other searches in the finer directions, at most 1"
        figures.append((meaning, f"{measured.confirmed:.2f}", _color_of(measured.confirmed)))
    if measured.ranks is not None:
        share, count = float((measured.ranks <= 1).mean()), len(measured.ranks)
        meaning = f"of {count:,} true pairs: the partner is the nearest of all (by chance: {1 / count:.2%})"
        figures.append((meaning, f"{share:.0%}", "inherit"))
    return figures


def _count_searches(searches: Searches) -> str:
    number = len(searches.agreement)
    if searches.are_new:
        return f"{number} new {'search' if number == 1 else 'searches'} of these rows"
    return f"{number} {'restart' if number == 1 else 'restarts'} of the fit"


def _color_of(agreement: float) -> str:
    """Red near chance and blue near 1, as in the pictures; between them the colour of text."""
    if agreement < LITTLE:
        return pictures.AGREEMENT_COLORS[0]
    return pictures.AGREEMENT_COLORS[-1] if agreement >= CALIBRATION.agreement_midpoint else "inherit"


def _list_rows(measured: Measured, texts: Texts) -> list[dict[str, Any]]:
    """One dict per held-out row of X, for the table of the page, in the order of the picture's points."""

    def text_of(side: Sequence[str] | None, row: int) -> str | None:
        return None if side is None else side[row][:_MAX_TEXT]

    names = name_regions(measured.regions, texts.y)
    listed = []
    for place, row in enumerate(measured.rows):
        cosines = [round(float(cosine), 4) for cosine in measured.cosine[place]]
        near = [
            {"row": int(other), "text": text_of(texts.y, other), "cosine": cosine}
            for other, cosine in zip(measured.nearest[place], cosines, strict=True)
        ]
        agreement = None if measured.agreement is None else round(float(measured.agreement[place]), 4)
        region = int(measured.regions.region_x[place])
        listed.append(
            {
                "row": int(row),
                "text": text_of(texts.x, row),
                "near": near,
                "margin": round(cosines[0] - cosines[-1], 4),
                "agreement": agreement,
                "region": names[region] if region >= 0 else "",
            }
        )
    return listed
