"""What do a few known pairs buy? A fit with them, beside a map from the pairs alone.

    python -m benchmarks.pairs [--data FOLDER] [--rows N --eval E] [--source NAME --target NAME] [--counts 5,20,100]
        [--alone 5,20,100] [--none] [--seeds 1] [--presets default] [--restarts 1] [--json FILE]

The pairs are random rows of X with their true partners; the partners are not rows of Y. Two maps use the same pairs
alone: Procrustes, and ridge regression (scikit-learn's `RidgeCV`, with the weight chosen by leave-one-out). Both are
centred by the means of all fitting rows. They take little time, so ``--alone`` lists more counts for them: these show
how many pairs they need to reach what a fit reaches with few.
"""

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
    make_parser,
    print_environment,
    print_table,
    read_counts,
    seconds_of,
    write_json,
)
from mv2v_jax import Config, LinearMap, align_restarts
from mv2v_jax.alignment.space import fit_space
from mv2v_jax.ops.linalg import procrustes

# Below this FOSCTTM a map counts as right.
SOLVED_FOSCTTM = 0.05
RIDGE_WEIGHTS = np.logspace(-3, 3, 19)

# Scores by number of pairs.
Curve = dict[int, dict[str, float]]


def draw_pairs(split: Split, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` random rows of X and their true partners; a larger count includes the pairs of a smaller one."""
    chosen = np.random.default_rng(seed).permutation(len(split.x))[:count]
    return split.x[chosen], split.y_true[chosen]


def maps_of_pairs(split: Split, pairs: tuple[np.ndarray, np.ndarray]) -> dict[str, LinearMap]:
    """Procrustes and ridge on known pairs alone, centred as a fit centres them."""
    spaces = [fit_space(jnp.asarray(rows)) for rows in (split.x, split.y)]
    source, target = (space.centering for space in spaces)
    x, y = (
        fit_space(jnp.asarray(rows), mean=centering.mean).rows
        for rows, centering in zip(pairs, (source, target), strict=True)
    )
    ridge = RidgeCV(alphas=RIDGE_WEIGHTS, fit_intercept=False).fit(np.asarray(x), np.asarray(y))
    matrices = {"Procrustes": procrustes(x, y), "ridge": jnp.asarray(ridge.coef_.T, x.dtype)}
    return {name: LinearMap(W=W, source=source, target=target) for name, W in matrices.items()}


def medians(scores: list[dict[str, float]]) -> dict[str, float]:
    """Median of every score over seeds."""
    return {name: statistics.median(score[name] for score in scores) for name in scores[0]}


def first_solved(found: Curve) -> int | None:
    """The smallest count from which on every count is solved."""
    solved = None
    for count in sorted(found, reverse=True):
        if found[count]["foscttm"] >= SOLVED_FOSCTTM:
            break
        solved = count
    return solved


def measure(
    split: Split, counts: list[int], alone: list[int], seeds: int, fit: Callable[[int, Any], LinearMap]
) -> dict[str, Curve]:
    """Median scores of every method, by number of pairs."""
    found: dict[str, Curve] = {"mv2v": {}, "Procrustes": {}, "ridge": {}}
    for count in sorted({*counts, *alone}):
        scores: dict[str, list[dict[str, float]]] = {name: [] for name in found}
        for seed in range(seeds):
            pairs = draw_pairs(split, count, seed)
            if count in counts:
                linear_map, seconds = seconds_of(fit, seed, pairs)
                scores["mv2v"].append(evaluate(linear_map, split) | {"seconds": seconds})
            if count:
                for name, linear_map in maps_of_pairs(split, pairs).items():
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


def compare(found: dict[str, Curve]) -> dict[str, Any]:
    """The largest loss of top-1 to a map of the pairs alone, and the numbers of pairs that solve the problem."""
    ours = found["mv2v"]
    gains = {
        count: ours[count]["top1"] - max(found[name][count]["top1"] for name in ("Procrustes", "ridge"))
        for count in ours
        if count
    }
    return {
        "smallest_gain": min(gains.values(), default=None),
        "with_pairs": min(gains, key=lambda count: gains[count], default=None),
        "solved": {name: first_solved(by) for name, by in found.items()},
    }


def print_comparison(compared: dict[str, Any]) -> None:
    """Print what `compare` found."""
    if compared["with_pairs"]:
        print(
            f"top-1 of mv2v less the better of the other two: {compared['smallest_gain']:+.3f} at worst, with "
            f"{compared['with_pairs']:,} pairs"
        )
    solved = ", ".join(
        f"{name} from {count:,} pairs on" if count is not None else f"{name} with none of these numbers"
        for name, count in compared["solved"].items()
    )
    print(f"FOSCTTM below {SOLVED_FOSCTTM}: {solved}")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fit with more and more pairs and print the curve; returns the figures by preset."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    add_preset_option(parser, ["default"])
    parser.add_argument(
        "--counts", type=read_counts, default=[5, 20, 100, 1_000], metavar="N,...", help="numbers of pairs for a fit"
    )
    parser.add_argument(
        "--alone",
        type=read_counts,
        default=[10, 50, 200, 400],
        metavar="N,...",
        help="more numbers of pairs, without a fit",
    )
    parser.add_argument("--none", action="store_true", help="also fit without pairs")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the pairs; medians are shown (default: 1)")
    parser.add_argument("--restarts", type=int, default=1, help="searches per fit (default: 1)")
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)
    record: dict[str, Any] = {}
    for preset in options.presets:
        config = Config.preset(preset)

        def fit(seed, pairs, config=config):
            return align_restarts(jax.random.key(seed), x, y, options.restarts, config, pairs=pairs).best.map

        counts = ([0] if options.none else []) + options.counts
        found = measure(split, counts, options.alone, options.seeds, fit)
        print_table(
            f"{preset}, median of {options.seeds} draws",
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
        record[preset] = {"scores": found, **compare(found)}
        print_comparison(record[preset])
    write_json(options.json, {"environment": environment, "data": data, "presets": record})
    return record


if __name__ == "__main__":
    main()
