"""Which label-free score tells good fits from bad ones, and what does it cost to choose among restarts by it?

    python -m benchmarks.selection --data FOLDER [--fits FILE] [--restarts 8] [--json FILE]
    python -m benchmarks.selection --fits FILE --restarts 0

The first part compares every score with the truth over `benchmarks.population`; --fits reads the fits of an earlier
run. The second part fits restarts on three data sets, among which every score chooses; 0 restarts leave it out.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from sklearn.metrics import roc_auc_score

from benchmarks.common import check_folder, evaluate, print_environment, print_table, write_json
from benchmarks.population import Condition, all_scores, collect, load, population_parser
from mv2v_jax import align

SUCCESS_FOSCTTM = 0.05
# Fewer fits are too few for a rank correlation.
MIN_IN_GROUP = 4
RESTARTED = (
    Condition("minilm > wordllama, 3,000", "minilm", "wordllama", 3_000, 0),
    Condition("wordllama > minilm, 3,000", "wordllama", "minilm", 3_000, 0),
    Condition("minilm > wordllama, 1,500", "minilm", "wordllama", 1_500, 20_000),
)

Fits = list[dict[str, Any]]
Figures = dict[str, dict[str, float | None]]


# ------------------------------------------------------------------------------------------------------- one population


def ranked(scores: Sequence[float]) -> np.ndarray:
    """Ranks of scores; scores that are not finite rank last, as in `mv2v_jax.select`."""
    values = np.asarray(scores, dtype=np.float64)
    return scipy.stats.rankdata(np.where(np.isfinite(values), values, -np.inf))


def correlation(scores: Sequence[float], truth: Sequence[float]) -> float | None:
    """Spearman's rank correlation; ``None`` if either side is constant."""
    ranks = ranked(scores), ranked(truth)
    if min(np.ptp(values) for values in ranks) == 0:
        return None
    return float(scipy.stats.spearmanr(*ranks).statistic)


def auroc(scores: Sequence[float], success: Sequence[bool]) -> float | None:
    """Probability that a success scores above a failure; ``None`` if there is only one of the two."""
    return float(roc_auc_score(success, ranked(scores))) if len(set(success)) == 2 else None


def succeeded(fit: dict[str, Any]) -> bool:
    """Whether a fit found the right basin."""
    return fit["truth"]["foscttm"] < SUCCESS_FOSCTTM


def group_fits(fits: Fits) -> dict[str, Fits]:
    """Fits by pair of encoders (the name of the condition up to its comma), groups of too few fits left out."""
    groups = defaultdict(list)
    for fit in fits:
        groups[fit["condition"].split(",")[0]].append(fit)
    return {name: members for name, members in groups.items() if len(members) >= MIN_IN_GROUP}


def compare_scores(fits: Fits) -> Figures:
    """Correlation of every label-free score with the truth, over all fits and within groups; AUROC for success."""
    truths = {
        "top-1": lambda fit: fit["truth"]["top1"],
        "-FOSCTTM": lambda fit: -fit["truth"]["foscttm"],
    }
    groups = group_fits(fits)

    def correlate(members, name, truth):
        return correlation([fit["scores"][name] for fit in members], [truth(fit) for fit in members])

    figures: Figures = {}
    for name in fits[0]["scores"]:
        figures[name] = {}
        for label, truth in truths.items():
            within = [correlate(members, name, truth) for members in groups.values()]
            found = [value for value in within if value is not None]
            figures[name][label] = correlate(fits, name, truth)
            figures[name][f"{label}, within"] = float(np.mean(found)) if found else None
        figures[name]["AUROC"] = auroc([fit["scores"][name] for fit in fits], [succeeded(fit) for fit in fits])
    return figures


def shown(value: float | None) -> str:
    """A figure as the tables show it; empty for ``None``."""
    return "" if value is None else f"{value:.3f}"


def print_comparison(fits: Fits, figures: Figures) -> None:
    """Print the table of the first part."""
    columns = list(next(iter(figures.values())))
    names = ", ".join(f"{name} ({len(members)})" for name, members in group_fits(fits).items()) or "none"
    print_table(
        f"{len(fits)} fits, {sum(map(succeeded, fits))} successful: Spearman correlation with the truth; AUROC for "
        f"FOSCTTM < {SUCCESS_FOSCTTM}\nwithin: mean over the groups {names}",
        ["score", *columns],
        [[name, *(shown(row[column]) for column in columns)] for name, row in figures.items()],
    )


# ------------------------------------------------------------------------------------------------------------- restarts


def restart(folder: Path, condition: Condition, num_restarts: int) -> Fits:
    """Fits of the same data with different keys: the truth and all scores of each."""
    split = load(folder, condition)
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)
    fits = []
    for index in range(num_restarts):
        result = align(jax.random.fold_in(jax.random.key(0), index), x, y, condition.config)
        fits.append({"truth": evaluate(result.map, split), "scores": all_scores(result, x, y)})
    return fits


def regrets(fits: Fits) -> dict[str, float]:
    """Top-1 lost by keeping the fit of the highest score instead of the best fit, per score and for a random choice."""
    top1 = np.array([fit["truth"]["top1"] for fit in fits])
    # Of equal scores argmax takes the first.
    chosen = {name: int(np.argmax(ranked([fit["scores"][name] for fit in fits]))) for name in fits[0]["scores"]}
    lost = {name: float(top1.max() - top1[index]) for name, index in chosen.items()}
    return {**lost, "one at random, on average": float(top1.max() - top1.mean())}


def run_restarts(folder: Path, num_restarts: int) -> dict[str, dict[str, Any]]:
    """Fit restarts on every data set and print the table of the second part; returns fits and regrets by data set."""
    found: dict[str, dict[str, Any]] = {}
    for condition in RESTARTED:
        fits = restart(folder, condition, num_restarts)
        name = f"{condition.name} @ {condition.offset}"
        found[name] = {"fits": fits, "regret": regrets(fits)}
        top1 = ", ".join(f"{fit['truth']['top1']:.3f}" for fit in fits)
        print(f"{name}: top-1 of the restarts {top1}", flush=True)
    names = list(next(iter(found.values()))["regret"])
    rows = [[name, *(data["regret"][name] for data in found.values())] for name in names]
    print_table(
        f"regret: top-1 lost by choosing one of {num_restarts} restarts by each score",
        ["score", *found, "largest"],
        [[row[0], *(f"{value:.3f}" for value in (*row[1:], max(row[1:])))] for row in rows],
    )
    return found


# ----------------------------------------------------------------------------------------------------------------- main


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Compare the scores, fit the restarts and print the tables; returns the figures."""
    parser = population_parser(__doc__)
    parser.add_argument("--restarts", type=int, default=8, help="restarts per data set, 0 for none (default: 8)")
    options = parser.parse_args(arguments)
    # Checked before the hours that the population can take.
    folder = check_folder(options.data)
    if options.restarts and folder is None:
        raise SystemExit("restarts need 60,000 texts: name their folder with --data, or use --restarts 0")
    environment = print_environment()
    fits = collect(options)
    figures = compare_scores(fits)
    print_comparison(fits, figures)
    restarts = run_restarts(folder, options.restarts) if options.restarts and folder is not None else {}
    record = {"environment": environment, "population": figures, "restarts": restarts, "fits": fits}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
