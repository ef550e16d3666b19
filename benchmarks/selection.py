"""Which label-free score tells right maps from wrong ones, and what does it cost to choose among restarts by it?

    python -m benchmarks.selection --data FOLDER [--cache FOLDER] [--json FILE]
    python -m benchmarks.selection --fits FILE [--json FILE]

The first table compares every score with the truth over `benchmarks.population`; --fits reads the fits of an earlier
run. The second one shows what choosing between the restarts of a fit by each score loses.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from sklearn.metrics import roc_auc_score

from benchmarks.common import print_environment, print_table, write_json
from benchmarks.population import LOWEST_TOP1, collect, population_parser

Fits = list[dict[str, Any]]
Figures = dict[str, dict[str, float | None]]

# Scores of one search, from its evidence.
SCORES = {
    "closeness, all directions": lambda evidence: evidence["closeness"][0],
    "closeness, finer 15/16": lambda evidence: evidence["closeness"][1],
    "closeness, finer half": lambda evidence: evidence["closeness"][3],
    "score: closeness, finer 3/4": lambda evidence: evidence["score"],
    "closeness, weakest scale": lambda evidence: min(evidence["closeness"]),
    "nearest cosine": lambda evidence: evidence["cross"],
}


def ranked(scores: Sequence[float]) -> np.ndarray:
    """Ranks of scores; scores that are not finite rank last, as in `mv2v_jax.select`."""
    values = np.asarray(scores, dtype=np.float64)
    return scipy.stats.rankdata(np.where(np.isfinite(values), values, -np.inf))


def auroc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """Probability that a right map scores above a wrong one; ``None`` if there is only one of the two."""
    return float(roc_auc_score(right, ranked(scores))) if len(set(right)) == 2 else None


def correlation(scores: Sequence[float], truth: Sequence[float]) -> float | None:
    """Spearman's rank correlation; ``None`` if either side is constant."""
    ranks = ranked(scores), ranked(truth)
    if min(np.ptp(values) for values in ranks) == 0:
        return None
    return float(scipy.stats.spearmanr(*ranks).statistic)


def scores_of(fit: dict[str, Any], restart: int) -> dict[str, float]:
    """Every score of one restart of a fit."""
    evidence = {name: values[restart] for name, values in fit["evidence"].items()}
    return {name: score(evidence) for name, score in SCORES.items()}


def compare_scores(fits: Fits) -> Figures:
    """How well each score tells right maps from wrong ones, and its correlation with the top-1 of right maps."""
    known = [fit for fit in fits if fit["is"] in ("right", "wrong")]
    columns: dict[str, list[float]] = {"agreement of restarts": [fit["agreement"] for fit in known]}
    for name in SCORES:
        columns[name] = [scores_of(fit, fit["chosen"])[name] for fit in known]
    right = [fit["is"] == "right" for fit in known]
    top1 = [fit["truth"]["top1"] for fit in known]

    def among_right(values):
        return [value for value, is_right in zip(values, right, strict=True) if is_right]

    return {
        name: {"AUROC": auroc(values, right), "top-1": correlation(among_right(values), among_right(top1))}
        for name, values in columns.items()
    }


def regrets(fits: Fits) -> dict[str, float]:
    """Mean top-1 that is lost by keeping the restart of the highest score instead of the best one, before settling."""
    lost: dict[str, list[float]] = {name: [] for name in (*SCORES, "one at random")}
    for fit in fits:
        if fit["is"] == "ambiguous" or max(fit["searched_top1"]) < LOWEST_TOP1:
            # There is nothing to choose.
            continue
        top1 = np.array(fit["searched_top1"])
        scores = [scores_of(fit, restart) for restart in range(len(top1))]
        for name in SCORES:
            # Of equal scores argmax takes the first.
            lost[name].append(top1.max() - top1[int(np.argmax(ranked([score[name] for score in scores])))])
        lost["one at random"].append(top1.max() - top1.mean())
    return {name: float(np.mean(values)) for name, values in lost.items()}


def shown(value: float | None) -> str:
    """A figure as the tables show it; empty for ``None``."""
    return "" if value is None else f"{value:.3f}"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Compare the scores and print the tables; returns the figures."""
    options = population_parser(__doc__).parse_args(arguments)
    environment = print_environment()
    fits = collect(options)
    figures = compare_scores(fits)
    counts = {truth: sum(fit["is"] == truth for fit in fits) for truth in ("right", "wrong")}
    print_table(
        f"{counts['right']} right and {counts['wrong']} wrong maps: AUROC for right ones, Spearman correlation "
        "with the top-1 of right ones",
        ["score", "AUROC", "top-1"],
        [[name, *(shown(value) for value in row.values())] for name, row in figures.items()],
    )
    lost = regrets(fits)
    print_table(
        "regret: top-1 lost by choosing one of the restarts by each score, mean over fits with a restart to choose",
        ["score", "regret"],
        [[name, f"{value:.4f}"] for name, value in lost.items()],
    )
    record = {"environment": environment, "population": figures, "regret": lost, "fits": fits}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
