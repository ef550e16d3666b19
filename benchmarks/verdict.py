"""Whether the verdict on a fit can be believed: nothing but the truth of `benchmarks.population` judges it.

python -m benchmarks.verdict [--data DIR] [--fits FILE] [--calibrate] [--plot FILE.png] [--json FILE]

Verdicts are given anew, from the evidence of every fit and the constants that mv2v_jax/verdict.py has now. --fits reads
fits of an earlier run; --calibrate fits those constants on the part kept for it and prints them; --plot draws the
reliability of the confidence, with matplotlib.
"""

import argparse
import importlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from scipy.special import expit

from benchmarks.common import print_environment, print_requirement, print_table, write_json
from benchmarks.population import collect, parse
from benchmarks.selection import SUCCESS_FOSCTTM, Fits, auroc, shown, succeeded
from mv2v_jax.alignment.score import ALIGNED, Evidence, Verdict, judge

PARTS = ("calibrate", "report")
NULLS = ("permuted", "Gaussian")
LEAST_AUROC = 0.97
WITHIN = 0.1
LEAST_WITHIN = 0.9
FEWEST_CONDITIONS = 40
NUM_BINS = 5


class Bin(NamedTuple):
    """Fits of about the same confidence; the means are ``None`` where there are none."""

    low: float
    high: float
    confidence: float | None
    success: float | None
    fits: int


class Constants(NamedTuple):
    """What `calibrate` finds: the constants of mv2v_jax/verdict.py."""

    score_midpoint: float
    score_slope: float
    agreement_midpoint: float
    agreement_slope: float
    top1_offset: float
    top1_closeness: float
    top1_log_rows: float


def judge_again(fits: Fits) -> Fits:
    """The same fits with the verdict, confidence and estimate that their evidence has under the constants of now."""
    names = fits[0]["evidence"]
    evidence = Evidence(**{name: jnp.asarray([fit["evidence"][name] for fit in fits]) for name in names})
    judgement = judge(evidence, jnp.asarray([fit["agreement"] for fit in fits]))
    fields = {name: np.asarray(getattr(judgement, name)) for name in ("verdict", "confidence", "estimated_top1")}
    return [{**fit, **{name: values[i].item() for name, values in fields.items()}} for i, fit in enumerate(fits)]


def is_null(fit: dict[str, Any]) -> bool:
    """Whether the fit was of data that cannot be aligned."""
    return any(name in fit["condition"] for name in NULLS)


def calibrate(fits: Fits) -> Constants:
    """The constants of mv2v_jax/verdict.py from the part kept for that, and from nothing of the other.

    Confidence is the product of two logistic curves, of the score and of the agreement, by maximum likelihood; the
    estimate is a third one, of the closeness and the number of rows, by least squares over fits called aligned.
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

    # Bounds of midpoints and slopes. A few dozen fits can be told apart nearly without error, and would have no curve
    # be steep enough; a curve that is too flat would call no fit anything.
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
    """The constants as mv2v_jax/verdict.py would have them."""
    print("\ncalibrated on the calibrate part alone:")
    print(f"_SCORE_MIDPOINT, _SCORE_SLOPE = {found.score_midpoint:.3f}, {found.score_slope:.1f}")
    print(f"_AGREEMENT_MIDPOINT, _AGREEMENT_SLOPE = {found.agreement_midpoint:.3f}, {found.agreement_slope:.1f}")
    top1 = f"{found.top1_offset:.2f}, {found.top1_closeness:.2f}, {found.top1_log_rows:.2f}"
    print(f"_TOP1_OFFSET, _TOP1_CLOSENESS, _TOP1_LOG_ROWS = {top1}")


def bin_reliability(fits: Fits) -> list[Bin]:
    """Mean confidence beside the share of successes, by equal steps of confidence."""
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
    # Rounded as far as the requirement is stated, so that float noise decides nothing.
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
    """The tables of one part: fit by fit, verdict by success, reliability."""
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
        f"{part}: verdicts and the truth, success being FOSCTTM < {SUCCESS_FOSCTTM}",
        ["verdict", "success", "failure"],
        [
            [name.replace("_", " "), str(counts["success"]), str(counts["failure"])]
            for name, counts in figures["counts"].items()
        ],
    )
    print_table(
        f"{part}: reliability",
        ["confidence", "mean confidence", "share of success", "fits"],
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
    """One table with a column a part."""
    rows = {
        "fits": lambda figures: str(figures["fits"]),
        "conditions": lambda figures: str(figures["conditions"]),
        f"successes, FOSCTTM < {SUCCESS_FOSCTTM}": lambda figures: str(figures["successes"]),
        "AUROC of confidence for success": lambda figures: shown(figures["auroc"]),
        "Brier score of confidence": lambda figures: shown(figures["brier"]),
        "nulls called aligned": lambda figures: f"{figures['nulls_aligned']} of {figures['nulls']}",
        "called aligned": lambda figures: str(figures["aligned"]),
        f"of those, estimated top-1 within {WITHIN}": lambda figures: shown(figures["estimate_within"]),
    }
    print_table(
        "verdicts without labels, judged with them",
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
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="confidence that is right")
    # Numbers of the first part above its points, of the second below.
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


def require(fits: Fits, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold the report part against what is required; ``None`` where it has nothing to judge by."""
    found, within = report["auroc"], report["estimate_within"]
    conditions = len({fit["number"] for fit in fits})
    return [
        print_requirement(
            f"AUROC of confidence for success on the report part, {shown(found) or 'undefined'}, at least "
            f"{LEAST_AUROC}",
            None if found is None else found >= LEAST_AUROC,
        ),
        print_requirement(
            f"nulls called aligned on the report part, {report['nulls_aligned']} of {report['nulls']}: none",
            report["nulls_aligned"] == 0 if report["nulls"] else None,
        ),
        print_requirement(
            f"estimated top-1 within {WITHIN} for {shown(within) or 'none'} of the {report['aligned']} called aligned "
            f"on the report part, at least {LEAST_WITHIN}",
            None if within is None else within >= LEAST_WITHIN,
        ),
        print_requirement(
            f"conditions in the population, {conditions}, at least {FEWEST_CONDITIONS}",
            conditions >= FEWEST_CONDITIONS,
        ),
    ]


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the arguments, judge every fit, print the tables; returns the verdicts on the verdicts."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--calibrate", action="store_true")
    own, rest = parser.parse_known_args(arguments)
    options = parse(__doc__, rest)
    if own.plot is not None:
        # Before the hours that the population can take.
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
    constants = None
    if own.calibrate:
        constants = calibrate(fits)
        print_constants(constants)
    if own.plot is not None:
        plot_reliability(own.plot, summaries)
    print()
    verdicts = require(fits, summaries["report"])
    record = {"parts": summaries, "fits": fits, "requirements": verdicts}
    calibrated = {} if constants is None else {"calibrated": constants._asdict()}
    write_json(options.json, {"environment": environment, **record, **calibrated})
    return verdicts


if __name__ == "__main__":
    main()
