"""The pictures of a report, by bokeh (extra ``report``), which no other module draws with."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.alignment.score import SCALES, Evidence, Verdict, judge
from mv2v_jax.errors import import_extra
from mv2v_jax.report.measure import Compared, Measured
from mv2v_jax.report.regions import Regions

# Colours that people with any kind of colour vision can tell apart.
_ROWS_Y, _NULL, _WITHIN, _MAPPED, _LINE = "#9aa0a6", "#d55e00", "#009e73", "#0072b2", "#1a7f37"
AGREEMENT_COLORS = ["#b2182b", "#d6604d", "#f4a582", "#c9c9c9", "#92c5de", "#4393c3", "#2166ac"]
_NO_AGREEMENT = "#7b3294"
_SCALE_NAMES = ["all directions", "finer than 1/16", "finer than 1/4 (the score)", "finest half"]
_WIDTH = 940


def check_bokeh() -> None:
    """Raise `InputError` if bokeh is not installed; call this before the work whose pictures it draws."""
    import_extra("bokeh", "report", "a report")


def aligned_from(evidence: Evidence) -> list[float | None]:
    """Per scale, the least closeness that may be called aligned if nothing else is in the way; ``None`` if none may.

    It is found by trying the judge itself, so it follows every change of its thresholds.
    """
    tried = np.linspace(0, 1, 401)
    own = np.nan_to_num(np.asarray(evidence.closeness, np.float64))
    lines: list[float | None] = []
    for scale in range(len(SCALES)):
        closeness = np.ones((len(tried), len(SCALES)))
        # The finest scale is judged by its share of the second as well.
        closeness[:, 1] = own[1]
        closeness[:, scale] = tried
        fine = jnp.full(len(tried), 10.0)
        favourable = Evidence(
            **dict.fromkeys(("cross", "within", "local_structure", "local_closeness", "symmetry"), fine),
            **dict.fromkeys(("distinct", "score"), fine),
            **dict.fromkeys(("null", "null_deviation"), jnp.zeros((len(tried), len(SCALES)))),
            cross_each=jnp.ones((len(tried), 2)),
            closeness=jnp.asarray(closeness),
            num_rows=jnp.full(len(tried), 1_000),
        )
        verdicts = np.asarray(jax.jit(judge)(favourable, jnp.ones(len(tried))).verdict)
        is_aligned = verdicts == Verdict.aligned.value
        lines.append(float(tried[is_aligned.argmax()]) if is_aligned.any() else None)
    return lines


def _figure(**settings: Any) -> Any:
    from bokeh.plotting import figure

    usual = {"width": _WIDTH, "height": 260, "sizing_mode": "scale_width", "toolbar_location": None, "tools": ""}
    made = figure(**{**usual, **settings})
    made.grid.grid_line_alpha = 0.3
    made.axis.axis_label_text_font_size = made.axis.major_label_text_font_size = "13px"
    return made


def draw_ruler(closeness: Sequence[float], restarts: np.ndarray, lines: Sequence[float | None]) -> Any:
    """One ruler per scale from the null to the rows of one space.

    Args:
        closeness: per scale, that of the map.
        restarts: ``[r, s]``, that of each search.
        lines: per scale, where the verdict ``aligned`` begins.
    """
    names = _SCALE_NAMES[::-1]
    low = min(-0.05, float(np.nanmin(restarts)) - 0.05, min(closeness) - 0.05)
    plot = _figure(
        y_range=names,
        x_range=(low, max(1.05, max(closeness) + 0.05)),
        height=250,
        x_axis_label="closeness: 0 as after a reflection (the null), 1 as rows of one space to each other (within)",
    )
    for name, value, line, ticks in zip(_SCALE_NAMES, closeness, lines, restarts.T, strict=True):
        plot.segment(x0=[0], x1=[1], y0=[name], y1=[name], color="#5f6368", line_width=2)
        plot.scatter([0, 1], [name, name], marker="dash", angle=np.pi / 2, size=16, color="#5f6368", line_width=2)
        if line is not None:
            plot.segment(
                x0=[line], x1=[1], y0=[name], y1=[name], color=_LINE, line_width=12, alpha=0.25,
                legend_label="aligned is possible here",
            )  # fmt: skip
        plot.scatter(
            ticks, [name] * len(ticks), marker="dash", angle=np.pi / 2, size=24, color="black", line_width=2,
            legend_label="one search",
        )  # fmt: skip
        is_good = line is not None and value >= line
        plot.scatter(
            [value], [name], marker="diamond", size=18, fill_color=_MAPPED if is_good else AGREEMENT_COLORS[0],
            line_color="white", legend_label="the fit of this map",
        )  # fmt: skip
    plot.add_layout(plot.legend[0], "above")
    plot.legend[0].orientation = "horizontal"
    return plot


def draw_clouds(measured: Measured, texts_x: Sequence[str] | None) -> Any:
    """Held-out rows of both spaces; the page's switch exchanges the coordinates, and a lasso selects rows of X."""
    from bokeh.models import ColumnDataSource, CustomJS, HoverTool
    from bokeh.transform import linear_cmap

    sources = {}
    for side in ("x", "y"):
        columns: dict[str, Any] = {}
        for name, cloud in measured.clouds.items():
            points = np.asarray(getattr(cloud, side), np.float32)
            columns |= {f"{name}_0": points[:, 0], f"{name}_1": points[:, 1]}
        columns |= {"now_0": columns["after_0"], "now_1": columns["after_1"]}
        sources[side] = ColumnDataSource(columns, name=f"cloud_{side}")
    sources["x"].data["row"] = measured.rows
    tooltips = [("row of X", "@row")]
    color: Any = _NO_AGREEMENT
    if measured.agreement is not None:
        sources["x"].data["agreement"] = measured.agreement.astype(np.float32)
        color = linear_cmap("agreement", AGREEMENT_COLORS, 0, 1)
        tooltips.append(("searches that agree", "@agreement{0%}"))
    if texts_x is not None:
        sources["x"].data["text"] = [texts_x[row][:120] for row in measured.rows]
        tooltips.append(("text", "@text"))
    plot = _figure(
        height=520, tools="pan,wheel_zoom,lasso_select,box_select,reset", active_drag="lasso_select",
        toolbar_location="right", x_axis_label="first direction", y_axis_label="second direction",
    )  # fmt: skip
    plot.scatter("now_0", "now_1", source=sources["y"], color=_ROWS_Y, size=4, alpha=0.35, legend_label="rows of Y")
    mapped = plot.scatter(
        "now_0", "now_1", source=sources["x"], color=color, size=7, alpha=0.85, line_color=None,
        nonselection_alpha=0.12, legend_label="rows of X, coloured by agreement",
    )  # fmt: skip
    plot.add_tools(HoverTool(renderers=[mapped], tooltips=tooltips))
    sources["x"].selected.js_on_change(
        "indices",
        CustomJS(code="window.dispatchEvent(new CustomEvent('rows-selected', {detail: cb_obj.indices}))"),
    )
    plot.add_layout(plot.legend[0], "above")
    plot.legend[0].orientation = "horizontal"
    return plot


def draw_agreement(measured: Measured) -> Any:
    """How many held-out rows have how much agreement."""
    assert measured.agreement is not None
    levels = np.linspace(0, 1, 12)
    counts, edges = np.histogram(measured.agreement, levels)
    centres = (edges[:-1] + edges[1:]) / 2
    colors = [AGREEMENT_COLORS[min(6, int(centre * 7))] for centre in centres]
    plot = _figure(
        height=230, x_range=(0, 1), x_axis_label="share of the searches that agree on the row's neighbour",
        y_axis_label="held-out rows of X",
    )  # fmt: skip
    plot.quad(top=counts, bottom=0, left=edges[:-1], right=edges[1:], fill_color=colors, line_color="white")
    plot.y_range.start = 0
    return plot


def draw_compared(compared: Compared, label: str, bins: np.ndarray) -> Any:
    """Three histograms as lines: mapped rows, the null, and rows of one space."""
    plot = _figure(height=260, x_axis_label=label, y_axis_label="share of rows")
    series = (
        (compared.within, _WITHIN, "rows of one space (best possible)", "dashed"),
        (compared.null, _NULL, "null: mapped rows after a reflection", "dotted"),
        (compared.mapped, _MAPPED, "mapped rows", "solid"),
    )
    for values, color, name, dash in series:
        counts = np.histogram(np.clip(values, bins[0], bins[-1]), bins)[0] / max(1, len(values))
        centres = (bins[:-1] + bins[1:]) / 2
        plot.line(centres, counts, color=color, line_width=3, line_dash=dash, legend_label=name)
    plot.legend[0].background_fill_alpha = 0.6
    plot.y_range.start = 0
    return plot


def draw_nearness(measured: Measured) -> Any:
    """Mean cosine of held-out rows with their nearest rows of the other space."""
    values = np.concatenate(measured.nearness)
    bins = np.linspace(values.min(), values.max() + 1e-6, 41)
    return draw_compared(measured.nearness, "mean cosine with the ten nearest rows of Y", bins)


def draw_hubs(measured: Measured) -> Any:
    """How often a row of Y is among the nearest of held-out rows: hubs are at the right, rows never found at 0."""
    highest = max(int(part.max()) for part in measured.hubs)
    bins = np.arange(min(highest, 40) + 2) - 0.5
    return draw_compared(measured.hubs, "times a row of Y is among the ten nearest of a held-out row", bins)


def draw_ranks(measured: Measured) -> Any:
    """Ranks of the true partners, forth and back, on a logarithmic scale."""
    assert measured.ranks is not None
    assert measured.ranks_back is not None
    size = len(measured.ranks)
    plot = _figure(
        height=260, x_axis_type="log", x_range=(0.9, size * 1.1), y_range=(0, 1.02),
        x_axis_label="rank k of the true partner", y_axis_label="share of pairs found within k",
    )  # fmt: skip
    shares = np.arange(1, size + 1) / size
    for ranks, color, name in ((measured.ranks, _MAPPED, "X to Y"), (measured.ranks_back, _WITHIN, "Y to X")):
        plot.step(np.sort(ranks), shares, mode="after", color=color, line_width=3, legend_label=name)
    ranks = np.unique(np.geomspace(1, size, 100).astype(int))
    plot.line(ranks, ranks / size, color=_NULL, line_dash="dotted", line_width=3, legend_label="chance")
    plot.legend[0].location = "bottom_right"
    return plot


def draw_regions(regions: Regions, names: Sequence[str]) -> Any:
    """Share of rows, closeness and agreement per region, side by side."""
    from bokeh.layouts import row

    labels = [f"{number + 1}. {name}"[:60] for number, name in enumerate(names)]
    places, height = labels[::-1], 80 + 28 * len(labels)
    occupied = _figure(width=760, height=height, y_range=places, x_axis_label="share of the rows")
    occupied.hbar(y=labels, right=regions.share_y, height=0.75, color=_ROWS_Y, alpha=0.6, legend_label="Y")
    occupied.hbar(y=labels, right=regions.share_x, height=0.3, color=_MAPPED, legend_label="X, mapped")
    occupied.add_layout(occupied.legend[0], "above")
    occupied.legend[0].orientation = "horizontal"
    panels = [occupied]
    shown: list[tuple[str, np.ndarray, Any]] = [("closeness, 0 null, 1 within", regions.closeness, _MAPPED)]
    if regions.agreement is not None:
        values = np.nan_to_num(regions.agreement)
        colors = [AGREEMENT_COLORS[int(np.clip(value * 7, 0, 6))] for value in values]
        shown.append(("searches that agree", values, colors))
    for label, values, color in shown:
        plot = _figure(width=210, height=height, y_range=places, x_range=(0, 1), x_axis_label=label)
        plot.yaxis.visible = False
        plot.hbar(y=labels, right=np.maximum(np.nan_to_num(values), 0), height=0.6, color=color)
        panels.append(plot)
    for panel in panels:
        panel.xaxis.ticker.desired_num_ticks = 4
        panel.xaxis.ticker.num_minor_ticks = 0
    return row(*panels, sizing_mode="scale_width")


def draw_matrix(agreement: np.ndarray) -> Any:
    """Agreement of the map and of all searches with each other in the finer directions."""
    from bokeh.transform import linear_cmap

    labels = ["map", *(f"search {number}" for number in range(1, len(agreement)))]
    color = linear_cmap("value", AGREEMENT_COLORS, 0, 1)
    columns: dict[str, Any] = {
        "one": np.repeat(labels, len(labels)).tolist(),
        "other": labels * len(labels),
        "value": np.asarray(agreement, np.float32).ravel(),
    }
    plot = _figure(x_range=labels, y_range=labels[::-1], height=330, width=560, sizing_mode="fixed")
    plot.rect("one", "other", 0.95, 0.95, source=columns, fill_color=color, line_color=None)
    if len(labels) <= 12:
        texts = [f"{value:.2f}" for value in columns["value"]]
        plot.text(columns["one"], columns["other"], text=texts, text_align="center", text_baseline="middle")
    plot.xaxis.major_label_orientation = 0.7
    return plot
