"""Can the verdict on a fit be trusted? Verdicts without labels, compared with the truth over `benchmarks.population`.

    python -m benchmarks.verdict --data FOLDER [--cache FOLDER] [--calibrate] [--plot FILE.png] [--json FILE]
    python -m benchmarks.verdict --fits FILE [--calibrate] [--plot FILE.png] [--json FILE]

Every verdict is computed from the evidence of its fit and the present constants of `mv2v_jax.alignment.score`, so
--fits can read fits of an earlier run. Tables show verdicts by kind of data, what separates right maps from wrong ones,
and what constants that were fitted without one corpus, or without one encoder, say about that corpus or encoder.
--calibrate prints the constants that fit the whole population. --plot draws confidence against the share of right maps,
with matplotlib.
"""

import importlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from scipy.special import expit

from benchmarks.common import print_environment, print_table, write_json
from benchmarks.population import collect, population_parser
from mv2v_jax import Evidence, Reason, Verdict
from mv2v_jax.alignment.score import (
    _AGREEMENT_SLOPE,
    _CLOSENESS_SLOPE,
    CALIBRATION,
    MIN_DISTINCT,
    MIN_LOCAL_CLOSENESS,
    MIN_LOCAL_STRUCTURE,
    MIN_SYMMETRY,
    Calibration,
    estimate_recall,
    judge,
)

# An estimated top-1 that differs from the true one by at most this much counts as near.
WITHIN = 0.1
NUM_BINS = 5

Fits = list[dict[str, Any]]


class Bin(NamedTuple):
    """Fits of similar confidence; the means are ``None`` if there are no such fits."""

    low: float
    high: float
    confidence: float | None
    right: float | None
    fits: int


# ------------------------------------------------------------------------------------------------------------- judging


def evidence_of(fits: Fits) -> Evidence:
    """Evidence of the chosen search of every fit, each field ``[number of fits, ...]``."""
    chosen = [{name: values[fit["chosen"]] for name, values in fit["evidence"].items()} for fit in fits]
    return Evidence(**{name: jnp.asarray([record[name] for record in chosen]) for name in chosen[0]})


def judge_again(fits: Fits, calibration: Calibration = CALIBRATION) -> Fits:
    """The same fits, with what their evidence says by these constants: verdict, reason, confidence and estimate."""
    judged = judge(evidence_of(fits), jnp.asarray([fit["agreement"] for fit in fits]), calibration)
    fields = {name: np.asarray(getattr(judged, name)) for name in ("verdict", "reason", "confidence", "estimated_top1")}
    return [{**fit, **{name: values[i].item() for name, values in fields.items()}} for i, fit in enumerate(fits)]


def weakest(fits: Fits) -> np.ndarray:
    """Closeness of the weakest scale of every fit."""
    return np.array([np.nan_to_num(min(fit["evidence"]["closeness"][fit["chosen"]])) for fit in fits])


def is_judged(fit: dict[str, Any]) -> bool:
    """Whether the cloud lets a verdict depend on closeness and agreement."""
    values = {name: values[fit["chosen"]] for name, values in fit["evidence"].items()}
    return (
        values["symmetry"] >= MIN_SYMMETRY
        and values["local_structure"] >= MIN_LOCAL_STRUCTURE
        and values["local_closeness"] >= MIN_LOCAL_CLOSENESS
        and values["distinct"] >= MIN_DISTINCT
    )


# --------------------------------------------------------------------------------------------------------- calibration


def calibrate(fits: Fits) -> Calibration:
    """Constants of `mv2v_jax.alignment.score`.

    The midpoints of closeness and agreement by maximum likelihood over right and wrong maps; the curve of recall by
    least squares over right maps that are called aligned, all index sizes, both directions, recall@1 and recall@10.
    Pairs of two encoders count fully, views of one encoder and artificial clouds less.
    """
    known = [fit for fit in fits if fit["is"] in ("right", "wrong") and is_judged(fit)]
    right = np.array([fit["is"] == "right" for fit in known])
    if right.sum() < 2 or right.all():
        raise SystemExit(f"cannot calibrate on {right.sum()} right and {(~right).sum()} wrong maps")
    score, agreement = weakest(known), np.array([fit["agreement"] for fit in known])

    def surprise(midpoints):
        found = expit(_CLOSENESS_SLOPE * (score - midpoints[0])) * expit(_AGREEMENT_SLOPE * (agreement - midpoints[1]))
        return -np.mean(np.log(np.where(right, found, 1 - found).clip(1e-9)))

    starts = [(0.1, 0.3), (0.2, 0.5)]
    found = [scipy.optimize.minimize(surprise, start, method="Nelder-Mead") for start in starts]
    midpoints = min(found, key=lambda result: result.fun).x
    calibration = CALIBRATION._replace(closeness_midpoint=float(midpoints[0]), agreement_midpoint=float(midpoints[1]))
    return calibration._replace(**_calibrate_recall(judge_again(fits, calibration)))


def _calibrate_recall(judged: Fits) -> dict[str, float]:
    used = [fit for fit in judged if fit["is"] == "right" and fit["verdict"] == Verdict.aligned]
    if not used:
        return {}
    evidence = evidence_of(used)
    closeness = -np.log(1 - np.clip(evidence.closeness[:, 2], 0, 0.99))
    density = np.asarray(evidence.cross_each - evidence.cross[:, None])
    listed, recalls, counts = [], [], []
    for i, fit in enumerate(used):
        for recall in fit["recalls"]:
            size, found = np.log(recall["index_size"] / 2_000), np.log(recall["num_found"])
            for direction in range(2):
                log_rows = np.log(float(evidence.num_rows[i]))
                listed.append([1, closeness[i], log_rows, density[i, direction], -size, found])
                recalls.append(recall["recall"][direction])
                counts.append(_weight(fit["kind"]))
    rows, truth, weights = np.array(listed), np.array(recalls), np.sqrt(counts)
    start = np.array([0.0, 0.0, 0.0, -15.0, 0.5, 0.7])
    # Kept near the start a little, where the fits say nothing about a term.
    inertia = 0.03 * (rows.std(axis=0) + 1e-3) * [0, 1, 1, 1, 1, 1]
    found = scipy.optimize.least_squares(
        lambda terms: np.append(weights * (expit(rows @ terms) - truth), inertia * (terms - start)), start
    )
    names = ("offset", "closeness", "log_rows", "density", "log_size", "log_found")
    return {f"recall_{name}": float(value) for name, value in zip(names, found.x, strict=True)}


def _weight(kind: str) -> float:
    return 0.1 if kind.startswith("planted") else 0.3 if kind == "views" else 1.0


def leave_out(fits: Fits, field: str) -> Fits:
    """Every fit on real rows, judged by constants that were fitted without its corpora, or without its encoders."""
    judged = []
    for name in sorted({name for fit in fits for name in fit[field]}):
        inside = [fit for fit in fits if name in fit[field]]
        outside = [fit for fit in fits if name not in fit[field]]
        if not any(fit["kind"].startswith("pairs") and fit["is"] == "right" for fit in outside):
            # Nothing is left that could say what pairs of two encoders are like.
            continue
        judged += [{**fit, "left_out": name} for fit in judge_again(inside, calibrate(outside))]
    return judged


# ------------------------------------------------------------------------------------------------------------- figures


def bin_reliability(fits: Fits) -> list[Bin]:
    """Mean confidence and share of right maps, in bins of equal width over the confidence."""
    edges = np.linspace(0, 1, NUM_BINS + 1)
    confidence = np.array([fit["confidence"] for fit in fits])
    right = np.array([fit["is"] == "right" for fit in fits])
    place = np.clip(np.digitize(confidence, edges) - 1, 0, NUM_BINS - 1)
    bins = []
    for i in range(NUM_BINS):
        inside = place == i
        means = [float(values[inside].mean()) if inside.any() else None for values in (confidence, right)]
        bins.append(Bin(float(edges[i]), float(edges[i + 1]), means[0], means[1], int(inside.sum())))
    return bins


def summarise(fits: Fits) -> dict[str, Any]:
    """Counts of verdicts by truth, and how near the estimates of aligned fits are."""
    aligned = [fit for fit in fits if fit["verdict"] == Verdict.aligned]
    errors = np.array([fit["estimated_top1"] - fit["truth"]["top1"] for fit in aligned if fit["is"] == "right"])
    return {
        "fits": len(fits),
        "counts": {
            truth: {verdict.name: _count(fits, truth, verdict) for verdict in Verdict}
            for truth in ("right", "half", "wrong", "ambiguous")
        },
        # Rounded, so that float noise at the bound does not change the count.
        "estimate_within": float((np.round(np.abs(errors), 6) <= WITHIN).mean()) if len(errors) else None,
        "estimate_highest": float(errors.max()) if len(errors) else None,
        "estimate_lowest": float(errors.min()) if len(errors) else None,
        "reliability": [found._asdict() for found in bin_reliability(fits)],
    }


def _count(fits: Fits, truth: str, verdict: Verdict) -> int:
    return sum(fit["is"] == truth and fit["verdict"] == verdict for fit in fits)


def recall_errors(
    fits: Fits, calibration: Callable[[dict[str, Any]], Calibration]
) -> dict[tuple[int, int], np.ndarray]:
    """Estimated minus true recall of right, aligned fits, by the number found and the size of the index."""
    errors: dict[tuple[int, int], list[float]] = {}
    for fit in fits:
        if fit["is"] != "right" or fit["verdict"] != Verdict.aligned:
            continue
        evidence = jax.tree.map(lambda leaf: leaf[0], evidence_of([fit]))
        for recall in fit["recalls"]:
            found, size = recall["num_found"], recall["index_size"]
            estimate = estimate_recall(
                evidence,
                num_found=found,
                index_size=size,
                calibration=calibration(fit),
            )
            errors.setdefault((found, size), []).extend(np.asarray(estimate) - np.asarray(recall["recall"]))
    return {key: np.array(values) for key, values in sorted(errors.items())}


# ------------------------------------------------------------------------------------------------------------ printing


def shown(value: float | None) -> str:
    """A figure as the tables show it; empty for ``None``."""
    return "" if value is None else f"{value:.3f}"


def print_kinds(fits: Fits) -> None:
    """Print one line per kind of data: the verdicts on right and on wrong maps, and the reasons."""
    rows, reasons = [], []
    for kind in dict.fromkeys(fit["kind"] for fit in fits):
        members = [fit for fit in fits if fit["kind"] == kind]
        cells = []
        for truth in ("right", "half", "wrong", "ambiguous"):
            counts = [_count(members, truth, verdict) for verdict in reversed(Verdict)]
            cells.append(" / ".join(map(str, counts)) if sum(counts) else "")
        counted = Counter(Reason(fit["reason"]) for fit in members)
        rows.append([kind, str(len(members)), *cells])
        reasons.append([kind, *(str(counted[reason] or "") for reason in Reason)])
    print_table(
        "verdicts by kind: aligned / uncertain / not aligned, among maps that are right, half right (top-1 below half "
        "of the oracle's), wrong,\nand any map of a cloud that has another one as good",
        ["kind", "fits", "right", "half", "wrong", "ambiguous"],
        rows,
    )
    print_table("reasons by kind", ["kind", *(reason.name.replace("_", " ") for reason in Reason)], reasons)


def print_margins(fits: Fits) -> None:
    """Print quantiles of the evidence of right and wrong maps, over clouds with local structure and no symmetry."""
    judged = [fit for fit in fits if is_judged(fit)]
    rows = []
    for truth, percents in (("right", (0, 5, 10, 50)), ("half", (0, 50, 100)), ("wrong", (50, 90, 95, 100))):
        members = [fit for fit in judged if fit["is"] == truth]
        if not members:
            continue
        values = weakest(members), np.array([fit["agreement"] for fit in members])
        both = np.minimum(values[0] / CALIBRATION.closeness_midpoint, values[1] / CALIBRATION.agreement_midpoint)
        for percent in percents:
            rows.append(
                [
                    f"{truth}, percentile {percent}",
                    *(f"{np.percentile(column, percent):.3f}" for column in (*values, both)),
                ]
            )
    print_table(
        "margins: closeness of the weakest scale, agreement, and the smaller one of both per midpoint",
        ["maps", "closeness", "agreement", "smaller of both"],
        rows,
    )


def print_summary(title: str, summaries: dict[str, dict[str, Any]]) -> None:
    """Print one table with a line per part."""
    print_table(
        title,
        [
            *("part", "fits", "wrong or ambiguous: aligned", "half: aligned", "right: aligned"),
            *(f"estimates within {WITHIN}", "lowest error", "highest error"),
        ],
        [
            [
                name,
                str(figures["fits"]),
                _share(figures, ("wrong", "ambiguous")),
                _share(figures, ("half",)),
                _share(figures, ("right",)),
                *(shown(figures[f"estimate_{name}"]) for name in ("within", "lowest", "highest")),
            ]
            for name, figures in summaries.items()
        ],
    )


def _share(figures: dict[str, Any], truths: tuple[str, ...]) -> str:
    aligned = sum(figures["counts"][truth]["aligned"] for truth in truths)
    return f"{aligned} of {sum(sum(figures['counts'][truth].values()) for truth in truths)}"


def print_fits(fits: Fits) -> None:
    """Print every fit."""
    print_table(
        "every fit (conf.: confidence, est.: estimated top-1)",
        [
            *("condition", "seed", "truth", "top-1", "FOSCTTM", "closeness", "agreement", "conf.", "verdict"),
            *("reason", "est."),
        ],
        [
            [
                fit["condition"],
                str(fit["seed"]),
                fit["is"],
                f"{fit['truth']['top1']:.3f}",
                f"{fit['truth']['foscttm']:.4f}",
                f"{value:.3f}",
                f"{fit['agreement']:.3f}",
                f"{fit['confidence']:.3f}",
                Verdict(fit["verdict"]).name.replace("_", " "),
                Reason(fit["reason"]).name.replace("_", " "),
                f"{fit['estimated_top1']:.3f}",
            ]
            for fit, value in zip(fits, weakest(fits), strict=True)
        ],
    )


def print_recalls(errors: dict[tuple[int, int], np.ndarray]) -> None:
    """Print how near the estimates of recall are at several index sizes."""
    print_table(
        "estimated minus true recall of right, aligned fits, both directions; constants fitted without the corpus",
        ["recall@k, index size", f"within {WITHIN}", "median", "lowest", "highest"],
        [
            [
                f"{found}, {size:,}",
                *(
                    f"{value:.3f}"
                    for value in ((np.abs(values) <= WITHIN).mean(), np.median(values), values.min(), values.max())
                ),
            ]
            for (found, size), values in errors.items()
        ],
    )


def load_figure() -> Any:
    """Matplotlib's figure, which draws to a file and needs no screen."""
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from error


def plot_reliability(path: Path, summaries: dict[str, dict[str, Any]]) -> None:
    """Draw mean confidence against the share of right maps, each point with its number of fits."""
    figure = load_figure()(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    style = {"textcoords": "offset points", "fontsize": 8}
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="perfect calibration")
    for (part, figures), offset in zip(summaries.items(), (8, -14, 20), strict=False):
        rows = [row for row in figures["reliability"] if row["fits"]]
        confidence, right = ([row[name] for row in rows] for name in ("confidence", "right"))
        (line,) = axes.plot(confidence, right, marker="o", label=f"{part}, {figures['fits']} fits")
        for x, y, row in zip(confidence, right, rows, strict=True):
            axes.annotate(str(row["fits"]), (x, y), xytext=(0, offset), ha="center", color=line.get_color(), **style)
    axes.set(xlabel="mean confidence", ylabel="share of right maps", aspect="equal", ylim=(-0.08, 1.08))
    figure.legend(loc="outside lower center", ncols=2)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--plot: {path} cannot be written: {error}") from error


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Judge every fit again and print the tables; returns the figures."""
    parser = population_parser(__doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="picture to draw, such as reliability.png")
    parser.add_argument("--calibrate", action="store_true", help="also fit the constants to the whole population")
    options = parser.parse_args(arguments)
    if options.plot is not None:
        # Checked before the hour that the population can take.
        load_figure()
    environment = print_environment()
    fits = judge_again(collect(options))
    print_fits(fits)
    print_kinds(fits)
    print_margins(fits)
    summaries = {"all fits": summarise(fits)}
    record: dict[str, Any] = {"environment": environment}
    left_out = {field: leave_out(fits, field) for field in ("corpora", "encoders")}
    for field, judged in left_out.items():
        for name in sorted({fit["left_out"] for fit in judged}):
            summaries[f"without {name}"] = summarise([fit for fit in judged if fit["left_out"] == name])
        summaries[f"left out, all {field}"] = summarise(judged)
    print_summary("verdicts compared with the truth; constants fitted without the corpus or encoder", summaries)
    without = {name: calibrate([fit for fit in fits if name not in fit["corpora"]]) for name in _corpora(fits)}
    errors = recall_errors(left_out["corpora"], lambda fit: without[fit["left_out"]])
    print_recalls(errors)
    if options.calibrate:
        constants = calibrate(fits)
        print("\nfitted to the whole population:")
        print("\n".join(f"    {name}={value:.3f}," for name, value in constants._asdict().items()))
        record["calibrated"] = constants._asdict()
    if options.plot is not None:
        names = ("all fits", "left out, all corpora", "left out, all encoders")
        plot_reliability(options.plot, {name: summaries[name] for name in names})
    record |= {"summaries": summaries, "fits": fits}
    write_json(options.json, record)
    return record


def _corpora(fits: Fits) -> list[str]:
    return sorted({name for fit in fits for name in fit["corpora"]})


if __name__ == "__main__":
    main()
