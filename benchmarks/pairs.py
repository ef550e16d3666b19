"""What a few known pairs buy: a fit with them beside what they give alone, from none to thousands.

python -m benchmarks.pairs [--data DIR] [--rows N --eval E] [--source NAME --target NAME] [--counts 5,20,100]
    [--alone 5,20,100] [--seeds 1] [--presets default] [--restarts 1] [--json FILE]

The pairs are rows of X with their true partners, drawn at random; the partners are no rows of Y. Beside each fit stand
Procrustes and ridge regression on the same pairs alone (scikit-learn's `RidgeCV`, its weight chosen by leave-one-out),
both centred by the means of all fitting rows. ``--alone`` lists further counts for those two, which take no time: how
many pairs do they need for what a fit does with few?
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import RidgeCV

from benchmarks.common import (
    Split,
    add_data_options,
    add_preset_option,
    evaluate,
    load_split,
    print_environment,
    print_requirement,
    print_table,
    read_counts,
    seconds_of,
    write_json,
)
from mv2v_jax import PRESETS, LinearMap, align_restarts
from mv2v_jax.alignment.space import fit_space
from mv2v_jax.ops.linalg import procrustes

# A map is called right where so few rows are closer than the true one.
SOLVED_FOSCTTM = 0.05
# Two seeds of one fit differ by so much.
TOP1_NOISE = 0.005
TIMES_FEWER = 4
RIDGE_WEIGHTS = np.logspace(-3, 3, 19)


def draw_pairs(split: Split, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` rows of X and their true partners; those of a smaller count are among those of a larger one."""
    chosen = np.random.default_rng(seed).permutation(len(split.x))[:count]
    return split.x[chosen], split.y_true[chosen]


def alone_maps(split: Split, pairs: tuple[np.ndarray, np.ndarray]) -> dict[str, LinearMap]:
    """Procrustes and ridge on known pairs, in the frame that a fit uses."""
    space_x, space_y = fit_space(jnp.asarray(split.x)), fit_space(jnp.asarray(split.y))
    x, y = (
        fit_space(jnp.asarray(rows), mean=space.mean).rows
        for rows, space in zip(pairs, (space_x, space_y), strict=True)
    )

    def of(W):
        return LinearMap(W=W, mean_x=space_x.mean, mean_y=space_y.mean, scale_x=space_x.scale, scale_y=space_y.scale)

    ridge = RidgeCV(alphas=RIDGE_WEIGHTS, fit_intercept=False).fit(np.asarray(x), np.asarray(y))
    return {"Procrustes": of(procrustes(x, y)), "ridge": of(jnp.asarray(ridge.coef_.T, x.dtype))}


def medians(scores: list[dict[str, float]]) -> dict[str, float]:
    """Median of every score over seeds."""
    return {name: statistics.median(score[name] for score in scores) for name in scores[0]}


def first_solved(found: dict[int, dict[str, float]]) -> int | None:
    """The count from which on every one is solved."""
    solved = None
    for count in sorted(found, reverse=True):
        if found[count]["foscttm"] >= SOLVED_FOSCTTM:
            break
        solved = count
    return solved


def measure(
    split: Split, counts: list[int], alone: list[int], seeds: int, fit: Callable[[int, Any], LinearMap]
) -> dict[str, dict[int, dict[str, float]]]:
    """Median scores of every method, by the number of pairs."""
    found: dict[str, dict[int, dict[str, float]]] = {"mv2v": {}, "Procrustes": {}, "ridge": {}}
    for count in sorted({*counts, *alone}):
        scores: dict[str, list[dict[str, float]]] = {name: [] for name in found}
        for seed in range(seeds):
            pairs = draw_pairs(split, count, seed)
            if count in counts:
                linear_map, seconds = seconds_of(fit, seed, pairs)
                scores["mv2v"].append(evaluate(linear_map, split) | {"seconds": seconds})
            if count:
                for name, linear_map in alone_maps(split, pairs).items():
                    scores[name].append(evaluate(linear_map, split))
        for name, several in scores.items():
            if several:
                found[name][count] = medians(several)
        print(
            f"{count} pairs: "
            + ", ".join(f"{name} {by[count]['top1']:.3f}" for name, by in found.items() if count in by),
            flush=True,
        )
    return found


def judge(found: dict[str, dict[int, dict[str, float]]]) -> list[dict[str, Any]]:
    """Print what was asked for, and whether it was reached."""
    ours = found["mv2v"]
    worse = {
        count: max(found[name][count]["top1"] for name in ("Procrustes", "ridge")) - ours[count]["top1"]
        for count in ours
        if count
    }
    requirements = []
    if worse:
        most = max(worse, key=lambda count: worse[count])
        requirements.append(
            print_requirement(
                f"never worse than either alone: top-1 {-worse[most]:+.3f} at worst, with {most} pairs "
                f"(noise {TOP1_NOISE})",
                worse[most] <= TOP1_NOISE,
            )
        )
    solved, alone = first_solved(ours), first_solved(found["Procrustes"])
    print(f"FOSCTTM below {SOLVED_FOSCTTM}: mv2v from {solved} pairs on, Procrustes alone from {alone}")
    if solved and alone:
        text = f"Procrustes alone needs {alone / solved:.1f} times as many (at least {TIMES_FEWER})"
        requirements.append(print_requirement(text, alone >= TIMES_FEWER * solved))
    return requirements


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the arguments, fit with more and more pairs, print the curve; returns the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    add_preset_option(parser, ["default"])
    parser.add_argument("--counts", type=read_counts, default=[5, 20, 100, 1_000], help="pairs that a fit is given")
    parser.add_argument("--alone", type=read_counts, default=[10, 50, 200, 400], help="further counts without a fit")
    parser.add_argument("--none", action="store_true", help="also fit without a pair")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the pairs and of the fit; medians are shown")
    parser.add_argument("--restarts", type=int, default=1, help="searches of a fit")
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)
    record: dict[str, Any] = {}
    for preset in options.presets:
        config = PRESETS[preset]()

        def fit(seed, pairs, config=config):
            return align_restarts(jax.random.key(seed), x, y, options.restarts, config, pairs=pairs).best.map

        counts = ([0] if options.none else []) + options.counts
        found = measure(split, counts, options.alone, options.seeds, fit)
        print_table(
            f"{preset}, median of {options.seeds}",
            ["pairs", *[f"{name}, {score}" for name in found for score in ("top-1", "FOSCTTM")], "seconds"],
            [
                [
                    f"{count:,}",
                    *[
                        text
                        for by in found.values()
                        for text in (
                            (f"{by[count]['top1']:.3f}", f"{by[count]['foscttm']:.4f}") if count in by else ("", "")
                        )
                    ],
                    f"{found['mv2v'][count]['seconds']:.1f}" if count in found["mv2v"] else "",
                ]
                for count in sorted({*counts, *options.alone})
            ],
        )
        record[preset] = {"scores": found, "requirements": judge(found)}
    write_json(options.json, {"environment": environment, "data": data, "presets": record})
    return record


if __name__ == "__main__":
    main()
