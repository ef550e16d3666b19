"""Can the verdict on a fit be trusted? Verdicts without labels, compared with the truth over `benchmarks.population`.

    python -m benchmarks.verdict --data FOLDER [--calibrate] [--plot FILE.png] [--json FILE]
    python -m benchmarks.verdict --fits FILE [--calibrate] [--plot FILE.png] [--json FILE]

Every verdict is computed again from the evidence of its fit and the present constants of `mv2v_jax.alignment.score`, so
--fits can read fits of an earlier version. --calibrate fits these constants on the calibration part of the population
and prints them. --plot draws confidence against the share of successes, with matplotlib.
"""

import importlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from scipy.special import expit

from benchmarks.common import print_environment, print_table, write_json
from benchmarks.population import collect, population_parser
from benchmarks.selection import SUCCESS_FOSCTTM, Fits, auroc, shown, succeeded
from mv2v_jax import Evidence, Verdict
from mv2v_jax.alignment.score import ALIGNED, judge

PARTS = ("calibrate", "report")
NULLS = ("permuted", "Gaussian")
# An estimated top-1 that differs from the true one by at most this much counts as near.
WITHIN = 0.1
NUM_BINS = 5


class Bin(NamedTuple):
    """Fits of similar confidence; the means are ``None`` if there are no such fits."""

    low: float
    high: float
    confidence: float | None
    success: float | None
    fits: int


class Constants(NamedTuple):
    """What `calibrate` finds: constants of `mv2v_jax.alignment.score`."""

    score_midpoint: float
    score_slope: float
    agreement_midpoint: float
    agreement_slope: float
    top1_offset: float
    top1_closeness: float
    top1_log_rows: float


def judge_again(fits: Fits) -> Fits:
    """The same fits, with verdict, confidence and estimate computed from their evidence by the present constants."""
    names = fits[0]["evidence"]
    evidence = Evidence(**{name: jnp.asarray([fit["evidence"][name] for fit in fits]) for name in names})
    judgement = judge(evidence, jnp.asarray([fit["agreement"] for fit in fits]))
    fields = {name: np.asarray(getattr(judgement, name)) for name in ("verdict", "confidence", "estimated_top1")}
    return [{**fit, **{name: values[i].item() for name, values in fields.items()}} for i, fit in enumerate(fits)]


def is_null(fit: dict[str, Any]) -> bool:
    """Whether the data of the fit cannot be aligned."""
    return any(name in fit["condition"] for name in NULLS)


def calibrate(fits: Fits) -> Constants:
    """Constants of `mv2v_jax.alignment.score`, from the calibration part of the fits alone.

    Confidence is the product of two logistic curves, of the score and of the agreement, fitted by maximum likelihood.
    The estimate of top-1 is a third one, of the closeness and the number of rows, fitted by least squares over the fits
    that are called aligned.
    """
    fits = [fit for fit in fits if fit["part"] == "calibrate"]
    score = np.array([fit["evidence"]["score"] for fit in fits])
    agreement = np.array([fit["agreement"] for fit in fits])
    success = np.array([succeeded(fit) for fit in fits], dtype=bool)
    if success.sum() < 2 or success.all():
        raise SystemExit(f"cannot calibrate on {success.sum()} successes and {(~success).sum()} failures")

    def confidence(constants):
        score_midpoint, score_slope, agreement_midpoint, agreement_slope = constants
        return expit(score_slope * (score - score_midpoint)) * expit(agreement_slope * (agreement - agreement_midpoint))

    def surprise(constants):
        found = confidence(constants)
        return -np.mean(np.log(np.where(success, found, 1 - found).clip(1e-9)))

    # Bounds of midpoints and slopes. A few dozen fits can be separated nearly without error, so that no slope would be
    # steep enough; and under a slope that is too flat no fit would get a clear verdict.
    bounds = ((0, 1), (20, 100), (0, 1), (5, 40))
    starts = itertools.product((0.25, 0.32, 0.4), (50,), (0.2, 0.4), (10, 30))
    found = [scipy.optimize.minimize(surprise, start, bounds=bounds, method="Nelder-Mead") for start in starts]
    fitted = min(found, key=lambda result: result.fun).x
    top1 = np.array([fit["truth"]["top1"] for fit in fits])
    found_confidence = confidence(fitted)
    aligned = found_confidence >= ALIGNED
    closeness, num_rows = (np.array([fit["evidence"][name] for fit in fits]) for name in ("closeness", "num_rows"))
    known = np.stack([np.ones_like(closeness), closeness, np.log(num_rows)], axis=1)[aligned]

    def errors(weights):
        return expit(known @ weights) * found_confidence[aligned] - top1[aligned]

    estimate = scipy.optimize.least_squares(errors, (-6.0, 10.0, 0.1), x_scale=(10.0, 10.0, 1.0)).x
    return Constants(*(float(value) for value in (*fitted, *estimate)))


def print_constants(found: Constants) -> None:
    """Print the constants as lines of `mv2v_jax.alignment.score`."""
    print("\ncalibrated on the calibration part alone:")
    print(f"SCORE_MIDPOINT, _SCORE_SLOPE = {found.score_midpoint:.3f}, {found.score_slope:.1f}")
    print(f"AGREEMENT_MIDPOINT, _AGREEMENT_SLOPE = {found.agreement_midpoint:.3f}, {found.agreement_slope:.1f}")
    top1 = f"{found.top1_offset:.2f}, {found.top1_closeness:.2f}, {found.top1_log_rows:.2f}"
    print(f"_TOP1_OFFSET, _TOP1_CLOSENESS, _TOP1_LOG_ROWS = {top1}")


def bin_reliability(fits: Fits) -> list[Bin]:
    """Mean confidence and share of successes, in bins of equal width over the confidence."""
    edges = np.linspace(0, 1, NUM_BINS + 1)
    confidence = np.array([fit["confidence"] for fit in fits])
    success = np.array([succeeded(fit) for fit in fits])
    place = np.clip(np.digitize(confidence, edges) - 1, 0, NUM_BINS - 1)
    bins = []
    for i in range(NUM_BINS):
        inside = place == i
        means = [float(values[inside].mean()) if inside.any() else None for values in (confidence, success)]
        bins.append(Bin(float(edges[i]), float(edges[i + 1]), means[0], means[1], int(inside.sum())))
    return bins


def summarise(fits: Fits) -> dict[str, Any]:
    """All figures of one part."""
    success = [succeeded(fit) for fit in fits]
    confidence = [fit["confidence"] for fit in fits]
    aligned = [fit for fit in fits if fit["verdict"] == Verdict.aligned]
    # Rounded, so that float noise at the bound does not change the count.
    near = [round(abs(fit["estimated_top1"] - fit["truth"]["top1"]), 6) <= WITHIN for fit in aligned]
    return {
        "fits": len(fits),
        "conditions": len({fit["number"] for fit in fits}),
        "successes": sum(success),
        "auroc": auroc(confidence, success),
        "brier": float(np.mean((np.array(confidence) - success) ** 2)),
        "nulls": sum(map(is_null, fits)),
        "nulls_aligned": sum(map(is_null, aligned)),
        "aligned": len(aligned),
        "estimate_within": float(np.mean(near)) if near else None,
        "counts": {
            verdict.name: {
                name: sum(fit["verdict"] == verdict and succeeded(fit) == wanted for fit in fits)
                for name, wanted in (("success", True), ("failure", False))
            }
            for verdict in Verdict
        },
        "reliability": [found._asdict() for found in bin_reliability(fits)],
    }


def print_part(part: str, fits: Fits, figures: dict[str, Any]) -> None:
    """Print the tables of one part: every fit, verdicts by success, reliability."""
    print_table(
        f"{part}: every fit (conf.: confidence, est.: estimated top-1)",
        ["condition", "offset", "seed", "top-1", "FOSCTTM", "score", "conf.", "verdict", "est."],
        [
            [
                fit["condition"],
                f"{fit['offset']:,}",
                str(fit["seed"]),
                f"{fit['truth']['top1']:.3f}",
                f"{fit['truth']['foscttm']:.4f}",
                f"{fit['evidence']['score']:.3f}",
                f"{fit['confidence']:.3f}",
                Verdict(fit["verdict"]).name.replace("_", " "),
                f"{fit['estimated_top1']:.3f}",
            ]
            for fit in fits
        ],
    )
    print_table(
        f"{part}: number of fits by verdict and truth (success: FOSCTTM < {SUCCESS_FOSCTTM})",
        ["verdict", "success", "failure"],
        [
            [name.replace("_", " "), str(counts["success"]), str(counts["failure"])]
            for name, counts in figures["counts"].items()
        ],
    )
    print_table(
        f"{part}: reliability of the confidence",
        ["confidence", "mean confidence", "share of successes", "fits"],
        [
            [
                f"{row['low']:.1f} to {row['high']:.1f}",
                shown(row["confidence"]),
                shown(row["success"]),
                str(row["fits"]),
            ]
            for row in figures["reliability"]
        ],
    )


def print_summary(summaries: dict[str, dict[str, Any]]) -> None:
    """Print one table with a column per part."""
    rows = {
        "fits": lambda figures: str(figures["fits"]),
        "conditions": lambda figures: str(figures["conditions"]),
        f"successes, FOSCTTM < {SUCCESS_FOSCTTM}": lambda figures: str(figures["successes"]),
        "AUROC of confidence for success": lambda figures: shown(figures["auroc"]),
        "Brier score of confidence": lambda figures: shown(figures["brier"]),
        "nulls called aligned": lambda figures: f"{figures['nulls_aligned']} of {figures['nulls']}",
        "fits called aligned": lambda figures: str(figures["aligned"]),
        f"of these, share with estimated top-1 within {WITHIN}": lambda figures: shown(figures["estimate_within"]),
    }
    print_table(
        "verdicts without labels, compared with the truth",
        ["", *summaries],
        [[name, *(show(figures) for figures in summaries.values())] for name, show in rows.items()],
    )


def load_figure() -> Any:
    """Matplotlib's figure, which draws to a file and needs no screen."""
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from error


def plot_reliability(path: Path, summaries: dict[str, dict[str, Any]]) -> None:
    """Draw mean confidence against the share of successes, each point with its number of fits."""
    figure = load_figure()(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    style = {"textcoords": "offset points", "fontsize": 8}
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="perfect calibration")
    # Numbers of the first part go above its points, those of the second below.
    for (part, figures), offset in zip(summaries.items(), (8, -14), strict=True):
        rows = [row for row in figures["reliability"] if row["fits"]]
        confidence, success = ([row[name] for row in rows] for name in ("confidence", "success"))
        (line,) = axes.plot(confidence, success, marker="o", label=f"{part}, {figures['fits']} fits")
        for x, y, row in zip(confidence, success, rows, strict=True):
            axes.annotate(str(row["fits"]), (x, y), xytext=(0, offset), ha="center", color=line.get_color(), **style)
    axes.set(
        xlabel="mean confidence", ylabel=f"share with FOSCTTM < {SUCCESS_FOSCTTM}", aspect="equal", ylim=(-0.08, 1.08)
    )
    figure.legend(loc="outside lower center", ncols=2)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--plot: {path} cannot be written: {error}") from error


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Judge every fit again and print the tables; returns the figures."""
    parser = population_parser(__doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="picture to draw, such as reliability.png")
    parser.add_argument("--calibrate", action="store_true", help="also fit the constants of the verdict")
    options = parser.parse_args(arguments)
    if options.plot is not None:
        # Checked before the hours that the population can take.
        load_figure()
    environment = print_environment()
    fits = judge_again(collect(options))
    parts = {part: [fit for fit in fits if fit["part"] == part] for part in PARTS}
    if not all(parts.values()):
        raise SystemExit(f"both parts need fits, found {', '.join(f'{len(parts[part])} to {part}' for part in PARTS)}")
    summaries = {part: summarise(members) for part, members in parts.items()}
    for part in PARTS:
        print_part(part, parts[part], summaries[part])
    print_summary(summaries)
    record: dict[str, Any] = {"environment": environment, "parts": summaries, "fits": fits}
    if options.calibrate:
        constants = calibrate(fits)
        print_constants(constants)
        record["calibrated"] = constants._asdict()
    if options.plot is not None:
        plot_reliability(options.plot, summaries)
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
