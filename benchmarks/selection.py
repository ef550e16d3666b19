"""Which label-free score knows a good fit from a bad one, and what choosing among restarts by it costs.

python -m benchmarks.selection [--data DIR] [--fits FILE] [--restarts 8] [--json FILE]

Two parts: every score against the truth over `benchmarks.population`, whose fits --fits reads instead of running them;
and restarts on three data sets, of which every score chooses one: --restarts says how many, 0 leaves this part out.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from sklearn.metrics import roc_auc_score

from benchmarks.common import evaluate, find_data, print_environment, print_requirement, print_table, write_json
from benchmarks.population import OWN_SCORE, Condition, all_scores, collect, load, parse
from mv2v_jax import align

SUCCESS_FOSCTTM = 0.05
LEAST_CORRELATION = 0.9
MOST_REGRET = 0.02
FEWEST_FITS = 60
# Of fewer fits a rank correlation says nothing.
FEWEST_IN_GROUP = 4
RESTARTED = (
    Condition("minilm > wordllama, 3,000", "minilm", "wordllama", 3_000, 0),
    Condition("wordllama > minilm, 3,000", "wordllama", "minilm", 3_000, 0),
    Condition("minilm > wordllama, 1,500", "minilm", "wordllama", 1_500, 20_000),
)

Fits = list[dict[str, Any]]
Figures = dict[str, dict[str, float | None]]


# ------------------------------------------------------------------------------------------------------- one population


def ranked(scores: Sequence[float]) -> np.ndarray:
    """Ranks of scores; what is not finite ranks last, as `mv2v_jax.restarts.select` has it."""
    values = np.asarray(scores, dtype=np.float64)
    return scipy.stats.rankdata(np.where(np.isfinite(values), values, -np.inf))


def correlation(scores: Sequence[float], truth: Sequence[float]) -> float | None:
    """Spearman's rank correlation; ``None`` where one of the two does not vary."""
    ranks = ranked(scores), ranked(truth)
    if min(np.ptp(values) for values in ranks) == 0:
        return None
    return float(scipy.stats.spearmanr(*ranks).statistic)


def auroc(scores: Sequence[float], success: Sequence[bool]) -> float | None:
    """Chance that a success scores above a failure; ``None`` where there is only one of the two."""
    return float(roc_auc_score(success, ranked(scores))) if len(set(success)) == 2 else None


def succeeded(fit: dict[str, Any]) -> bool:
    """Whether a fit found the right basin."""
    return fit["truth"]["foscttm"] < SUCCESS_FOSCTTM


def group_fits(fits: Fits) -> dict[str, Fits]:
    """Fits by pair of encoders, the condition's name up to its comma, as far as a group has enough of them."""
    groups = defaultdict(list)
    for fit in fits:
        groups[fit["condition"].split(",")[0]].append(fit)
    return {name: members for name, members in groups.items() if len(members) >= FEWEST_IN_GROUP}


def compare_scores(fits: Fits) -> Figures:
    """How every label-free score goes with the truth: over all fits, within groups, and as a test of success."""
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
    """A figure as the tables show it; nothing where there is none."""
    return "" if value is None else f"{value:.3f}"


def print_comparison(fits: Fits, figures: Figures) -> None:
    """The table of the first part."""
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
    """Fits of the same data that differ in their key alone: the truth and the scores of each."""
    split = load(folder, condition)
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)
    fits = []
    for index in range(num_restarts):
        result = align(jax.random.fold_in(jax.random.key(0), index), x, y, condition.config)
        fits.append({"truth": evaluate(result.map, split), "scores": all_scores(result, x, y)})
    return fits


def regrets(fits: Fits) -> dict[str, float]:
    """Top-1 lost by keeping the fit of the highest score instead of the best one, per score; and by chance."""
    top1 = np.array([fit["truth"]["top1"] for fit in fits])
    # The first of equal scores, as argmax has it.
    chosen = {name: int(np.argmax(ranked([fit["scores"][name] for fit in fits]))) for name in fits[0]["scores"]}
    lost = {name: float(top1.max() - top1[index]) for name, index in chosen.items()}
    return {**lost, "one at random, on average": float(top1.max() - top1.mean())}


def run_restarts(folder: Path, num_restarts: int) -> dict[str, dict[str, Any]]:
    """Fits and regrets per data set, said on standard output as they come; and the table of the second part."""
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
        ["score", *found, "most"],
        [[row[0], *(f"{value:.3f}" for value in (*row[1:], max(row[1:])))] for row in rows],
    )
    return found


# ----------------------------------------------------------------------------------------------------------------- main


def judge(fits: Fits, figures: Figures, restarts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Hold the score in use against what is required of it; ``None`` where restarts were left out."""
    found = figures[OWN_SCORE]["top-1"]
    # Rounded as far as requirements are stated, so that float noise decides nothing.
    regret = {name: round(data["regret"][OWN_SCORE], 6) for name, data in restarts.items()}
    worst = ", ".join(f"{value:.3f}" for value in regret.values()) or "not run"
    return [
        print_requirement(
            f"Spearman correlation of '{OWN_SCORE}' with top-1 over the population, {shown(found) or 'undefined'}, at "
            f"least {LEAST_CORRELATION}",
            found is not None and found >= LEAST_CORRELATION,
        ),
        print_requirement(
            f"regret of choosing by '{OWN_SCORE}', {worst}, at most {MOST_REGRET} on every data set",
            max(regret.values()) <= MOST_REGRET if regret else None,
        ),
        print_requirement(
            f"fits in the population, {len(fits)}, at least {FEWEST_FITS}",
            len(fits) >= FEWEST_FITS,
        ),
    ]


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the arguments, compare the scores, restart, print the tables; returns the verdicts."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--restarts", type=int, default=8)
    own, rest = parser.parse_known_args(arguments)
    options = parse(__doc__, rest)
    # Before the hours that the population can take.
    folder = find_data(options.data)
    if own.restarts and folder is None:
        raise SystemExit("restarts need the 60,000 texts: name their folder with --data, or leave out: --restarts 0")
    environment = print_environment()
    fits = collect(options)
    figures = compare_scores(fits)
    print_comparison(fits, figures)
    restarts = run_restarts(folder, own.restarts) if own.restarts and folder is not None else {}
    print()
    verdicts = judge(fits, figures, restarts)
    record = {"population": figures, "restarts": restarts, "fits": fits, "requirements": verdicts}
    write_json(options.json, {"environment": environment, **record})
    return verdicts


if __name__ == "__main__":
    main()
