"""Plots of a stability study. They need matplotlib (extra ``plot``), which no other module imports."""

from pathlib import Path

import numpy as np

from mv2v_jax.data.atomic_files import atomic_path
from mv2v_jax.errors import InputError
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

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, study)
    with atomic_path(path) as temporary:
        # Without the version of matplotlib, so that the same study gives the same bytes.
        figure.savefig(temporary, format="png", dpi=144, metadata={"Software": None})


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
    axes.set_xlabel("score on held-out rows (no label)")
    axes.set_ylabel("agreement with the chosen restart")
    axes.set_title(f"{len(study.restarts)} restarts by basin")
    axes.legend(title="restarts", fontsize="small")


def _agreement(figure, study: Study) -> None:
    """Agreement of all pairs of restarts, ordered by basin and score."""
    axes = figure.add_subplot()
    order = np.lexsort((np.array([-row["score"] for row in study.restarts]), np.asarray(study.stability.basin)))
    image = axes.imshow(np.asarray(study.stability.agreement)[np.ix_(order, order)], vmin=-0.2, vmax=1, cmap="viridis")
    figure.colorbar(image, ax=axes, label="cosine of maps on the rows of X")
    axes.set_xlabel("restart, by basin and score")
    axes.set_ylabel("restart, by basin and score")
    axes.set_title("agreement of restarts")


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
    """Share of restarts called aligned, and the scores of restarts, against the number of rows per space."""
    axes = figure.add_subplot()
    rows = [size["rows"] for size in study.facts["sizes"]]
    axes.plot(rows, [size["aligned"] for size in study.facts["sizes"]], "o-", color="C0", label="share called aligned")
    scores = axes.twinx()
    medians = np.array([size["score"]["median"] for size in study.facts["sizes"]])
    lowest = np.array([size["score"]["lowest"] for size in study.facts["sizes"]])
    highest = np.array([size["score"]["highest"] for size in study.facts["sizes"]])
    ranges = np.stack([medians - lowest, highest - medians])
    scores.errorbar(rows, medians, ranges, fmt="s--", color="C1", capsize=3, label="score: median and range")
    axes.set_xscale("log")
    axes.set_xticks(rows, [f"{size:,}" for size in rows])
    axes.minorticks_off()
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel("rows per space")
    axes.set_ylabel("share called aligned")
    scores.set_ylabel("score (no label)")
    handles = [*axes.get_legend_handles_labels()[0], *scores.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize="small")
    axes.set_title("restarts by number of rows")
