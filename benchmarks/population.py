"""Fits that went well and fits that did not, on which `benchmarks.selection` and `benchmarks.verdict` test scores.

    python -m benchmarks.population --data FOLDER [--json FILE]

The population covers sizes from too small to plenty, both directions, texts from three places of the file, views of
one encoder, pairs of encoders that are too hard, weak refinement, and null data that cannot be aligned. Fits on texts
from some places calibrate the constants of the verdict; fits on texts from the other places only report, and so do
pairs with LSA. The bundled rows are too few for three places, so --data is needed.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from benchmarks.common import (
    Split,
    add_data_options,
    check_folder,
    evaluate,
    make_parser,
    read_rows,
    split_rows,
    write_json,
)
from mv2v_jax import AlignResult, Config, align_restarts
from mv2v_jax.alignment.space import fit_space, hold_out
from mv2v_jax.ops.csls import match_csls, mean_csls
from mv2v_jax.ops.masked import unit_rows

NUM_EVAL = 2_000
# The default of the command line: a verdict also rests on the agreement of restarts.
NUM_RESTARTS = 2
OFFSETS = (0, 20_000, 40_000)
OWN_SCORE = "score: closeness x agreement of anchor sets"


# From the rows of source and target, and a generator, to the rows that replace them.
Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Condition:
    """One pair of data sets to align.

    Attributes:
        name: name in the tables.
        source, target: encoders.
        rows: fitting rows per space.
        offset: first row of the file that is used.
        change: changes the rows of both spaces before they are split.
        config: config of the fits.
        seeds: number of fits.
    """

    name: str
    source: str
    target: str
    rows: int
    offset: int
    change: Change | None = None
    config: Config = dataclasses.field(default_factory=Config)
    seeds: int = 1


def view(source: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same encoder after a random projection with noise: it can be aligned, and the true map is known."""
    turn = np.linalg.qr(rng.normal(size=(rows.shape[1], rows.shape[1])))[0][:, :256]
    noise = rng.normal(size=(rows.shape[0], 256)) * (rows.std() * 0.5)
    return source, (rows @ turn + noise).astype(np.float32)


def permute_coordinates(
    source: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Null: the values of every coordinate are shuffled among the rows, which breaks all geometry."""
    return source, np.stack([rng.permutation(column) for column in rows.T], axis=1)


def gaussian(source: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Null: a Gaussian cloud of the same mean and covariance."""
    covariance = np.cov(rows.T.astype(np.float64))
    cloud = rng.multivariate_normal(rows.mean(0), covariance, size=rows.shape[0], method="eigh")
    return source, cloud.astype(np.float32)


def shifted_domain(source: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mismatched domains: X from one end of the strongest direction of the source, Y from the other end."""
    del rng
    n = len(source) - NUM_EVAL
    centered = source[:n] - source[:n].mean(0)
    order = np.argsort(centered @ np.linalg.eigh(centered.T @ centered)[1][:, -1])
    order = np.concatenate([order, np.arange(n, len(source))])
    return source[order], target[order]


def conditions(with_lsa: bool) -> list[Condition]:
    """All conditions; those with LSA only if its rows exist."""
    both = (("minilm", "wordllama"), ("wordllama", "minilm"))
    weak = Config().replace(annealing={"power": 0.0})
    found = []
    for source, target in both:
        pair = f"{source} > {target}"
        for rows in (1_500, 3_000, 6_000):
            for offset in OFFSETS[: 2 if rows == 6_000 else 3]:
                found.append(Condition(f"{pair}, {rows:,}", source, target, rows, offset, seeds=2))
        for offset in OFFSETS[:2]:
            found += [
                Condition(f"{pair}, no weights", source, target, 3_000, offset, config=weak, seeds=2),
                Condition(f"{pair}, coordinates permuted", source, target, 3_000, offset, permute_coordinates),
                Condition(f"{pair}, Gaussian", source, target, 3_000, offset, gaussian),
                Condition(f"{pair}, mismatched domains", source, target, 3_000, offset, shifted_domain),
            ]
    for offset in OFFSETS[:2]:
        found += [Condition(f"{name} > view", name, name, 3_000, offset, view) for name in ("minilm", "wordllama")]
    if with_lsa:
        for rows in (3_000, 6_000):
            found += [Condition(f"{name} > lsa, {rows:,}", name, "lsa", rows, 0) for name in ("minilm", "wordllama")]
        found += [Condition(f"lsa > {name}, 3,000", "lsa", name, 3_000, 0) for name in ("minilm", "wordllama")]
        found += [Condition("lsa > view", "lsa", "lsa", 3_000, offset, view) for offset in OFFSETS[:2]]
    return found


def load(folder: Path | None, condition: Condition) -> Split:
    """The rows of a condition, split by the protocol."""
    rng = np.random.default_rng(condition.offset + condition.rows)
    source, target = (
        np.asarray(read_rows(folder, name)[0][condition.offset :][: 2 * condition.rows + NUM_EVAL], np.float32)
        for name in (condition.source, condition.target)
    )
    if condition.change is not None:
        source, target = condition.change(source, target, rng)
    return split_rows(source, target, NUM_EVAL)


@functools.partial(jax.jit, static_argnames="held_out_rows")
def _mapped_rows(result: AlignResult, x: jax.Array, y: jax.Array, held_out_rows: int):
    rows_x, rows_y = fit_space(x).rows, fit_space(y).rows
    held_x, held_y = (hold_out(rows, held_out_rows)[1] for rows in (rows_x, rows_y))
    return unit_rows(rows_x @ result.map.W), rows_y, unit_rows(held_x @ result.map.W), held_y


def all_scores(result: AlignResult, x: jax.Array, y: jax.Array) -> dict[str, float]:
    """The score by which `mv2v_jax.select` chooses, and other label-free scores to compare it with."""
    mapped, target, held_mapped, held_target = _mapped_rows(result, x, y, Config().held_out_rows)
    matches = match_csls(mapped, target, num_neighbors=1)
    forward, backward = (np.asarray(found.index[:, 0]) for found in (matches.x_to_y, matches.y_to_x))
    returned = mapped[backward[forward]]
    similarity = np.asarray(held_mapped @ held_target.T)
    rows, columns = scipy.optimize.linear_sum_assignment(-similarity)
    return {
        OWN_SCORE: float(result.evidence.score),
        "closeness, held-out rows": float(result.evidence.closeness),
        "agreement of anchor sets": float(result.evidence.anchor_agreement),
        "mean CSLS, fitted rows": float(mean_csls(mapped, target)),
        "mean CSLS, held-out rows, after settling": float(mean_csls(held_mapped, held_target)),
        "nearest cosine, held-out rows": float(result.evidence.cross),
        "one-to-one cosine, held-out rows, after settling": float(similarity[rows, columns].mean()),
        "mutual nearest, fitted rows": float((backward[forward] == np.arange(len(mapped))).mean()),
        "cycle cosine, fitted rows": float(jnp.sum(returned * mapped, axis=1).mean()),
        "CKA of matched clusters": float(result.info.anchors.objective.max()),
    }


def part_of(name: str, offset: int) -> str:
    """Whether the fits of a condition calibrate constants or only report on them. No text does both."""
    too_hard = "lsa" in name and "view" not in name
    return "report" if offset == OFFSETS[1] or too_hard else "calibrate"


def run(folder: Path | None, listed: list[Condition]) -> Iterator[dict[str, Any]]:
    """Fit every condition; yields one record per fit."""
    for number, condition in enumerate(listed):
        split = load(folder, condition)
        x, y = jnp.asarray(split.x), jnp.asarray(split.y)
        for seed in range(condition.seeds):
            restarts = align_restarts(jax.random.key(seed), x, y, NUM_RESTARTS, condition.config)
            result = restarts.best
            evidence = {f.name: float(getattr(result.evidence, f.name)) for f in dataclasses.fields(result.evidence)}
            yield {
                "condition": condition.name,
                "number": number,
                "offset": condition.offset,
                "seed": seed,
                "part": part_of(condition.name, condition.offset),
                "truth": evaluate(result.map, split),
                "evidence": evidence,
                # There are two restarts, so this is the agreement of the chosen one with the other.
                "agreement": float(restarts.agreement[0, 1]),
                "scores": all_scores(result, x, y),
                "verdict": int(result.verdict),
                "confidence": float(result.confidence),
                "estimated_top1": float(result.estimated_top1),
            }


def collect(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All fits, or the fits of an earlier run if ``--fits`` names its file."""
    if options.fits is not None:
        return json.loads(options.fits.read_text(encoding="utf-8"))["fits"]
    folder = check_folder(options.data)
    if folder is None:
        raise SystemExit("the population needs 60,000 texts, more than are bundled: name their folder with --data")
    fits = []
    for fit in run(folder, conditions((folder / "wordnet.lsa.npy").exists())):
        fits.append(fit)
        truth = fit["truth"]
        print(
            f"{fit['condition']} @ {fit['offset']}, seed {fit['seed']}: top-1 {truth['top1']:.3f}, FOSCTTM "
            f"{truth['foscttm']:.4f}, score {fit['evidence']['score']:.3f}",
            flush=True,
        )
    return fits


def population_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark on the population."""
    parser = make_parser(description)
    add_data_options(parser)
    parser.add_argument("--fits", type=Path, metavar="FILE", help="fits of an earlier run, as --json wrote them")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Fit the population and write its fits."""
    options = population_parser(__doc__).parse_args(arguments)
    write_json(options.json, {"fits": collect(options)})


if __name__ == "__main__":
    main()
