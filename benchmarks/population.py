"""Fits that went well and fits that did not: what `benchmarks.selection` and `benchmarks.verdict` judge scores on.

python -m benchmarks.population [--data DIR] [--json FILE]

Sizes from too small to plenty, both directions, texts from three places of the file, views of one encoder, pairs that
are known to be too hard, weak refinement, and nulls that cannot be aligned. Texts from one place of the file
calibrate thresholds, others report them; pairs with LSA only report.
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

from benchmarks.common import add_data_options, evaluate, find_data, read_rows, split_rows, write_json
from mv2v_jax import AlignResult, Config, align_restarts
from mv2v_jax.alignment.space import fit_space, hold_out
from mv2v_jax.ops.csls import match_csls, mean_csls
from mv2v_jax.ops.masked import unit_rows

NUM_EVAL = 2_000
# As many as the command line makes: a verdict rests on their agreement too.
NUM_RESTARTS = 2
OFFSETS = (0, 20_000, 40_000)
OWN_SCORE = "score: closeness x agreement of anchor sets"


# Source and target rows, and a generator, to the rows that take their place.
Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Condition:
    """One pair of data sets to align.

    Attributes:
        name: for tables.
        source, target: encoders.
        rows: fitting rows a side.
        offset: first row of the file that is used.
        change: what is done to the rows of both first.
        config: how it is fitted.
        seeds: how many fits.
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
    """The same encoder seen through a random projection and noise: alignable, with a truth that is known."""
    turn = np.linalg.qr(rng.normal(size=(rows.shape[1], rows.shape[1])))[0][:, :256]
    noise = rng.normal(size=(rows.shape[0], 256)) * (rows.std() * 0.5)
    return source, (rows @ turn + noise).astype(np.float32)


def permute_coordinates(
    source: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Null: each coordinate keeps its values, no row keeps its own."""
    return source, np.stack([rng.permutation(column) for column in rows.T], axis=1)


def gaussian(source: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Null: a Gaussian cloud of the same mean and covariance."""
    covariance = np.cov(rows.T.astype(np.float64))
    cloud = rng.multivariate_normal(rows.mean(0), covariance, size=rows.shape[0], method="eigh")
    return source, cloud.astype(np.float32)


def shifted_domain(source: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mismatched domains: X from one side of the source's strongest direction, Y from the other."""
    del rng
    n = len(source) - NUM_EVAL
    centered = source[:n] - source[:n].mean(0)
    order = np.argsort(centered @ np.linalg.eigh(centered.T @ centered)[1][:, -1])
    order = np.concatenate([order, np.arange(n, len(source))])
    return source[order], target[order]


def conditions(with_lsa: bool) -> list[Condition]:
    """All conditions; those of LSA only where its file has been made."""
    both = (("minilm", "wordllama"), ("wordllama", "minilm"))
    weak = Config(anneal_power=0.0)
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


def load(folder: Path | None, condition: Condition):
    """The rows of a condition, split by the protocol."""
    rng = np.random.default_rng(condition.offset + condition.rows)
    source, target = (
        np.asarray(read_rows(folder, name)[0][condition.offset :][: 2 * condition.rows + NUM_EVAL], np.float32)
        for name in (condition.source, condition.target)
    )
    if condition.change is not None:
        source, target = condition.change(source, target, rng)
    return split_rows(source, target, NUM_EVAL)


@functools.partial(jax.jit, static_argnames="config")
def _mapped_rows(result: AlignResult, x: jax.Array, y: jax.Array, config: Config):
    space_x, space_y = fit_space(x), fit_space(y)
    held_x, held_y = (hold_out(space, config.held_out_rows).held_out for space in (space_x, space_y))
    return (
        unit_rows(space_x.rows @ result.map.W),
        space_y.rows,
        unit_rows(held_x @ result.map.W),
        held_y,
    )


def all_scores(result: AlignResult, x: jax.Array, y: jax.Array) -> dict[str, float]:
    """The score by which `mv2v_jax.select` chooses, and other label-free scores that were compared with it."""
    mapped, target, held_mapped, held_target = _mapped_rows(result, x, y, Config())
    matches = match_csls(mapped, target, num_neighbors=1)
    forward, backward = (np.asarray(found.index[:, 0]) for found in (matches.x_to_y, matches.y_to_x))
    returned = mapped[backward[forward]]
    similarity = np.asarray(held_mapped @ held_target.T)
    rows, columns = scipy.optimize.linear_sum_assignment(-similarity)
    return {
        OWN_SCORE: float(result.evidence.score),
        "closeness, held out": float(result.evidence.closeness),
        "agreement of anchor sets": float(result.evidence.anchor_agreement),
        "mean CSLS, fitted rows": float(mean_csls(mapped, target)),
        "mean CSLS, kept rows, after settling": float(mean_csls(held_mapped, held_target)),
        "nearest cosine, held out": float(result.evidence.cross),
        "one-to-one cosine, kept rows, after settling": float(similarity[rows, columns].mean()),
        "mutual nearest, fitted rows": float((backward[forward] == np.arange(len(mapped))).mean()),
        "cycle cosine, fitted rows": float(jnp.sum(returned * mapped, axis=1).mean()),
        "CKA of matched clusters": float(result.info.anchor_objective.max()),
    }


def part_of(name: str, offset: int) -> str:
    """Whether a condition may set thresholds or only report on them; no text sets them that they are reported on."""
    too_hard = "lsa" in name and "view" not in name
    return "report" if offset == OFFSETS[1] or too_hard else "calibrate"


def run(folder: Path | None, listed: list[Condition]) -> Iterator[dict[str, Any]]:
    """Fit every condition; yields a record a fit."""
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
                # Of two restarts, that with the other one.
                "agreement": float(restarts.agreement[0, 1]),
                "scores": all_scores(result, x, y),
                "verdict": int(result.verdict),
                "confidence": float(result.confidence),
                "estimated_top1": float(result.estimated_top1),
            }


def collect(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All fits, or those of an earlier run where ``--fits`` names its file."""
    if options.fits is not None:
        return json.loads(options.fits.read_text(encoding="utf-8"))["fits"]
    folder = find_data(options.data)
    if folder is None:
        raise SystemExit("the population needs the 60,000 texts: name their folder with --data")
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


def parse(description: str | None, arguments: list[str] | None) -> argparse.Namespace:
    """The options of everything that looks at the population."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--fits", type=Path, metavar="FILE", help="fits of an earlier run, as --json wrote them")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Fit the population and keep it."""
    options = parse(__doc__, arguments)
    write_json(options.json, {"fits": collect(options)})


if __name__ == "__main__":
    main()
