"""Plots of a stability study. They need matplotlib (extra ``plot``), which no other module imports."""

from pathlib import Path

import numpy as np

from mv2v_jax.alignment.score import CALIBRATION
from mv2v_jax.data.atomic_files import atomic_path
from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.stability import SAME_BASIN
from mv2v_jax.runs.study import Study


def check_plotting() -> None:
    """Raise `InputError` if matplotlib is not installed; call this before the study runs."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            'plots need matplotlib: pip install "mv2v_jax[plot]", or leave them out with --no-plots'
        ) from error


def plot_study(study: Study, folder: Path) -> None:
    """Write ``scores.png``, ``agreement.png``, ``convergence.png`` and ``sizes.png``."""
    for name, draw in (
        ("scores", _scores),
        ("agreement", _agreement),
        ("convergence", _convergence),
        ("sizes", _sizes),
    ):
        _draw(folder / f"{name}.png", draw, study)


def _draw(path: Path, draw, study: Study) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, study)
    figure.suptitle(_caption(study), fontsize="small")
    with atomic_path(path) as temporary:
        # Without the version of matplotlib, so that the same study gives the same bytes.
        figure.savefig(temporary, format="png", dpi=144, metadata={"Software": None})


def _caption(study: Study) -> str:
    """Verdict and data, above every picture."""
    facts, made_by = study.facts, study.made_by
    return (
        f"{facts['verdict'].replace('_', ' ')} ({facts['reason'].replace('_', ' ')}), confidence "
        f"{facts['confidence']:.2f}\n{made_by['n']:,} rows of X in {made_by['d_x']} dimensions, {made_by['m']:,} rows "
        f"of Y in {made_by['d_y']}, {facts['restarts']} restarts"
    )


def _mark_null(draw_line) -> None:
    """The null and the threshold of a score, as lines."""
    threshold = CALIBRATION.closeness_midpoint
    draw_line(0, color="0.4", linestyle=":", label="null: after reflections")
    draw_line(threshold, color="C2", linestyle="--", label=f"right maps are above {threshold}")


def _scores(figure, study: Study) -> None:
    """Score of every restart against its agreement with the chosen restart, one colour per basin."""
    axes = figure.add_subplot()
    for basin in study.facts["basins"][:8]:
        rows = [row for row in study.restarts if row["basin"] == basin["basin"]]
        axes.scatter(
            [row["score"] for row in rows],
            [row["agreement_with_chosen"] for row in rows],
            label=f"basin {basin['basin']}: {basin['size']}",
            s=22,
            alpha=0.7,
        )
    rest = [row for row in study.restarts if row["basin"] >= 8]
    if rest:
        axes.scatter(
            [row["score"] for row in rest],
            [row["agreement_with_chosen"] for row in rest],
            label=f"others: {len(rest)}",
            s=12,
            color="0.6",
        )
    _mark_null(axes.axvline)
    axes.axhline(
        CALIBRATION.agreement_midpoint, color="C2", label=f"restarts that agree: {CALIBRATION.agreement_midpoint}"
    )
    axes.set_xlabel("score on held-out rows: 0 null, 1 rows of one space")
    axes.set_ylabel("agreement with the chosen restart, finer directions")
    axes.set_title(f"{len(study.restarts)} restarts by basin")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _agreement(figure, study: Study) -> None:
    """Agreement of all pairs of restarts, ordered by basin and score."""
    axes = figure.add_subplot()
    order = np.lexsort((np.array([-row["score"] for row in study.restarts]), np.asarray(study.stability.basin)))
    image = axes.imshow(np.asarray(study.stability.agreement)[np.ix_(order, order)], vmin=-0.2, vmax=1, cmap="viridis")
    figure.colorbar(image, ax=axes, label="cosine of maps on the rows of X")
    axes.locator_params(integer=True)
    axes.set_xlabel("restart, by basin and score")
    axes.set_ylabel("restart, by basin and score")
    axes.set_title(f"agreement of restarts: from {SAME_BASIN} on, two are in one basin")


def _convergence(figure, study: Study) -> None:
    """Label-free objective of every restart at every step of the search; the largest basin in colour."""
    stages = {name: values for name, values in study.trajectory.items() if values.size}
    basin = np.asarray(study.stability.basin)
    panels = figure.subplots(1, max(1, len(stages)), squeeze=False)[0]
    for axes, (name, values) in zip(panels, stages.items(), strict=False):
        for members, color, label in ((basin != 0, "0.7", "other basins"), (basin == 0, "C0", "largest basin")):
            if members.any():
                lines = axes.plot(values[members].T, color=color, linewidth=0.7, alpha=0.6)
                lines[0].set_label(f"{label}: {members.sum()}")
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.set_ylabel("objective (no label)")
        axes.legend(fontsize="small")


def _sizes(figure, study: Study) -> None:
    """Share of restarts called aligned, and below it their scores, against the number of rows per space."""
    sizes = study.facts["sizes"]
    rows = [size["rows"] for size in sizes]
    shares, scores = figure.subplots(2, 1, sharex=True)
    shares.plot(rows, [size["aligned"] for size in sizes], "o-", color="C0")
    shares.set_ylim(-0.05, 1.05)
    shares.set_ylabel("share called aligned")
    shares.set_title("restarts by number of rows")
    medians, lowest, highest = (
        np.array([size["score"][name] for size in sizes]) for name in ("median", "lowest", "highest")
    )
    ranges = np.stack([medians - lowest, highest - medians])
    scores.errorbar(rows, medians, ranges, fmt="s-", color="C1", capsize=3, label="median and range")
    _mark_null(scores.axhline)
    scores.set_xscale("log")
    scores.set_xticks(rows, [f"{size:,}" for size in rows])
    scores.minorticks_off()
    scores.set_xlabel("rows per space")
    scores.set_ylabel("score")
    scores.legend(fontsize="small")
