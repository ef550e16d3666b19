"""Fits that are known to be right or wrong, on which `benchmarks.verdict` and `benchmarks.selection` test scores.

    python -m benchmarks.population --data FOLDER [--cache FOLDER] [--only TEXT] [--json FILE]

The population holds real pairs of encoders of three corpora at several sizes, views of one encoder, unlike and
mismatched parts of corpora, real rows whose geometry was destroyed, and the artificial clouds of
`benchmarks.planted_kinds`. Each condition names its corpora and its encoders, so that constants can be fitted without
some of them and reported on them. Real rows are reduced to 256 dimensions and 3,000 rows per space where a condition
does not say otherwise, so that most fits share their compiled programs. Conditions whose files are missing are left
out; wordnet.lsa.npy is made from the texts.

--cache keeps the maps of every fit in a folder, so that a later run only computes the evidence and the verdict again.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from benchmarks.common import (
    Split,
    add_folder_option,
    add_json_option,
    check_folder,
    evaluate,
    evaluate_oracle,
    make_parser,
    write_json,
)
from benchmarks.planted_kinds import ALIGNABLE, AMBIGUOUS, WRONG, Kind, rotation
from mv2v_jax import Centering, Config, Evidence, LinearMap, align_restarts
from mv2v_jax.alignment.choose import order_by_score
from mv2v_jax.alignment.fit import prepare
from mv2v_jax.alignment.score import fine_agreement, gather_evidence
from mv2v_jax.data.inputs import prepare_inputs
from mv2v_jax.data.padding import PaddedRows

NUM_EVAL = 2_000
# The default of the command line: a verdict also rests on the agreement of restarts.
NUM_RESTARTS = 2
ROWS = 3_000
MAX_DIMS = 256
# A map is right if its FOSCTTM is below this and its top-1 is at least half of that of the oracle.
SUCCESS_FOSCTTM = 0.05
# Below this top-1 a map is of no use, whatever the oracle reaches.
LOWEST_TOP1 = 0.05

# Corpus and encoder of every file.
FILES = {
    "wordnet.minilm": ("wordnet", "minilm"),
    "wordnet.wordllama": ("wordnet", "wordllama"),
    "wordnet.lsa": ("wordnet", "lsa"),
    "web.minilm": ("web", "minilm"),
    "web.e5": ("web", "e5"),
    "captions_en.minilm": ("captions", "minilm"),
    "captions_de.e5": ("captions", "e5"),
}

# From a folder to the rows of both spaces, split by the protocol.
Load = Callable[[Path], Split]


@dataclasses.dataclass(frozen=True)
class Condition:
    """One pair of data sets to align.

    Attributes:
        name: name in the tables.
        kind: group of the tables.
        load: returns the rows.
        corpora, encoders: what the rows come from.
        truth: ``"pairs"``: true pairs of the evaluation rows decide whether a map is right. ``"ambiguous"``: another
            map is as good, so that no map may be called aligned. ``"none"``: there is no right map.
        seeds: number of fits.
    """

    name: str
    kind: str
    load: Load
    corpora: frozenset[str]
    encoders: frozenset[str]
    truth: str = "pairs"
    seeds: int = 1


# ---------------------------------------------------------------------------------------------------------- real rows


@functools.cache
def read(folder: Path, name: str) -> np.ndarray:
    """Rows of one file as float32."""
    return np.load(folder / f"{name}.npy").astype(np.float32)


def reduce(rows: np.ndarray, max_dims: int = MAX_DIMS) -> np.ndarray:
    """Rows in their ``max_dims`` strongest directions."""
    if rows.shape[1] <= max_dims:
        return rows
    return rows @ np.linalg.eigh(rows.T @ rows)[1][:, -max_dims:]


def protocol(source: np.ndarray, target: np.ndarray, num_eval: int = NUM_EVAL, max_dims: int = MAX_DIMS) -> Split:
    """The protocol: the last rows judge; the first half of the others is X, the second half Y."""
    n = source.shape[0] - num_eval
    parts = (slice(0, n // 2), slice(n // 2, n))
    return unlike(source, target, parts, slice(n, None), max_dims)


def unlike(source, target, parts, judged, max_dims: int = MAX_DIMS) -> Split:
    """Rows of which ``parts`` choose those of X and those of Y; ``judged`` rows evaluate."""
    source, target = (np.asarray(reduce(rows, max_dims), np.float32) for rows in (source, target))
    part_x, part_y = parts
    return Split(
        x=source[part_x], y=target[part_y], y_true=target[part_x], x_eval=source[judged], y_eval=target[judged]
    )


def pair(
    source: str, target: str, rows: int = ROWS, offset: int = 0, max_dims: int = MAX_DIMS, eval_rows=NUM_EVAL
) -> Load:
    """Two encoders of the same texts."""

    def load(folder):
        part = slice(offset, offset + 2 * rows + eval_rows)
        return protocol(read(folder, source)[part], read(folder, target)[part], eval_rows, max_dims)

    return load


def view(name: str, noise: float, bent: bool = False, offset: int = 0) -> Load:
    """An encoder and a noisy, rotated copy of it; a nonlinear function of it if ``bent``."""

    def load(folder):
        rng = np.random.default_rng(offset + 17)
        rows = read(folder, name)[offset : offset + 2 * ROWS + NUM_EVAL]
        other = rows - rows.mean(0)
        if bent:
            wide = other @ rng.normal(size=(rows.shape[1], 1_024)) / other.std() / np.sqrt(rows.shape[1])
            other = np.maximum(wide, 0) @ rng.normal(size=(1_024, MAX_DIMS)) / 32
        other = other + rng.normal(size=other.shape) * noise * other.std()
        return protocol(rows, other @ rotation(rng, other.shape[1]))

    return load


def changed(name: str, change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Load:
    """An encoder, and rows that ``change`` makes of it."""

    def load(folder):
        rng = np.random.default_rng(3)
        rows = read(folder, name)[: 2 * ROWS + NUM_EVAL]
        return protocol(rows, change(rows, rng).astype(np.float32))

    return load


def permute_coordinates(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The values of every principal coordinate are shuffled among the rows."""
    turned = (rows - rows.mean(0)) @ np.linalg.eigh(np.cov(rows.T))[1]
    return np.stack([rng.permutation(column) for column in turned.T], axis=1)


def gaussian(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian cloud of the same mean and covariance."""
    values, directions = np.linalg.eigh(np.cov(rows.T.astype(np.float64)))
    return rows.mean(0) + rng.normal(size=rows.shape) * np.sqrt(np.maximum(values, 0)) @ directions.T


def mirrored(source: str, target: str) -> Load:
    """Real pairs, each of which is multiplied by a random sign: symmetric under x to -x."""

    def load(folder):
        part = slice(0, 2 * ROWS + NUM_EVAL)
        signs = np.random.default_rng(5).choice([-1, 1], size=(2 * ROWS + NUM_EVAL, 1))
        return protocol(
            *(signs * (rows - rows.mean(0)) for rows in (read(folder, name)[part] for name in (source, target)))
        )

    return load


def mismatched(source: str, target: str, offset: int = 0) -> Load:
    """Other texts, other encoders: rows of two corpora."""

    def load(folder):
        x, y = (read(folder, name)[offset : offset + 2 * ROWS + NUM_EVAL] for name in (source, target))
        return protocol(x, y)

    return load


def same_encoder(source: str, target: str) -> Load:
    """Two corpora of one encoder: the identity would be right, and says what the rows are judged by."""

    def load(folder):
        x, y = (read(folder, name) for name in (source, target))
        rows = np.concatenate([x[:ROWS], y[:ROWS], x[ROWS : ROWS + NUM_EVAL]])
        turned = rows @ rotation(np.random.default_rng(2), rows.shape[1]).astype(np.float32)
        return protocol(rows, turned)

    return load


def cluster(rows: np.ndarray, num: int, rng: np.random.Generator, steps: int = 15) -> np.ndarray:
    """Number of the k-means topic of every row, by Lloyd's iterations."""
    centers = rows[rng.choice(len(rows), num, replace=False)]
    for _ in range(steps):
        which = np.argmax(rows @ centers.T - (centers**2).sum(1) / 2, axis=1)
        centers = np.stack([rows[which == i].mean(0) if (which == i).any() else centers[i] for i in range(num)])
    return which


def topics(source: str, target: str, concentration: float | None, seed: int, num_rows: int = ROWS) -> Load:
    """Both sides draw topics in proportions of their own; without a concentration they share 6 topics of 12 each."""

    def load(folder):
        rng = np.random.default_rng(seed)
        x, y = read(folder, source), read(folder, target)
        which = cluster(x[:40_000], 18, rng)
        judged = np.arange(len(x) - NUM_EVAL, len(x))
        order = rng.permutation(min(len(x) - NUM_EVAL, 40_000))
        parts, free = [], np.ones(len(order), bool)
        shuffled = rng.permutation(18)
        for side in range(2):
            if concentration is None:
                weights = np.isin(np.arange(18), shuffled[:12] if side else shuffled[6:]).astype(float)
            else:
                weights = rng.dirichlet([concentration] * 18)
            chances = weights[which[order]] / np.bincount(which, minlength=18)[which[order]] * free
            drawn = rng.choice(len(order), min(num_rows, (chances > 0).sum()), replace=False, p=chances / chances.sum())
            free[drawn] = False
            parts.append(order[drawn])
        return unlike(x, y, parts, judged)

    return load


def narrow(source: str, target: str, seed: int) -> Load:
    """One topic of the corpus only."""

    def load(folder):
        x, y = read(folder, source), read(folder, target)
        which = cluster(x, 5, np.random.default_rng(seed))
        rows = np.flatnonzero(which == np.argmax(np.bincount(which)))[: 2 * ROWS + NUM_EVAL]
        return protocol(x[rows], y[rows])

    return load


def planted(kind: Kind, rows: int, seed: int) -> Load:
    """A pair of artificial clouds."""

    def load(folder):
        del folder
        source, target = kind(np.random.default_rng(seed), 2 * rows + NUM_EVAL)
        return protocol(source.astype(np.float32), target.astype(np.float32))

    return load


# --------------------------------------------------------------------------------------------------------- conditions


def _real(name: str, kind: str, load: Load, files: tuple[str, ...], truth: str = "pairs", seeds: int = 1) -> Condition:
    corpora, encoders = (frozenset(FILES[file][place] for file in files) for place in range(2))
    return Condition(name, kind, load, corpora, encoders, truth, seeds)


def real_conditions() -> list[Condition]:
    """All conditions on real rows."""
    found = []
    for one, other, offsets in (
        ("wordnet.minilm", "wordnet.wordllama", (0, 20_000, 40_000)),
        ("captions_en.minilm", "captions_de.e5", (0, 8_000, 16_000)),
        ("web.minilm", "web.e5", (0, 10_000, 20_000)),
    ):
        for files in ((one, other), (other, one)):
            name = f"{files[0]} > {files[1]}"
            for offset in offsets:
                found.append(_real(f"{name}, 3,000 @ {offset}", "pairs, 3,000", pair(*files, offset=offset), files))
            found.append(_real(f"{name}, 1,500", "pairs, 1,500", pair(*files, rows=1_500), files))
            found.append(_real(f"{name}, 6,000", "pairs, 6,000", pair(*files, rows=6_000), files))
    for files, rows in (
        (("wordnet.minilm", "wordnet.wordllama"), 12_000),
        (("captions_en.minilm", "captions_de.e5"), 10_000),
        (("captions_de.e5", "captions_en.minilm"), 10_000),
        (("web.minilm", "web.e5"), 12_000),
        (("web.e5", "web.minilm"), 12_000),
    ):
        load = pair(*files, rows=rows, eval_rows=4_000, max_dims=384)
        found.append(_real(f"{files[0]} > {files[1]}, {rows:,}", "pairs, 10,000 and more", load, files))
    for name in FILES:
        found.append(_real(f"{name} > view", "views", view(name, 0.5), (name,)))
        found.append(_real(f"{name} > noisy view", "views", view(name, 1.0, offset=8_000), (name,)))
        found.append(_real(f"{name} > bent view", "views", view(name, 0.3, bent=True), (name,)))
    words = ("wordnet.minilm", "wordnet.wordllama")
    for files in (words, words[::-1], ("web.minilm", "web.e5")):
        for seed in range(2):
            name = f"{files[0]} > {files[1]}"
            found.append(_real(f"{name}, skew {seed}", "skew", topics(*files, 1.0, seed), files))
            if files == words:
                found.append(_real(f"{name}, overlap {seed}", "overlap", topics(*files, None, seed), files))
        found.append(_real(f"{name}, narrow", "narrow topic", narrow(*files, 0), files))
    for files in (
        ("wordnet.minilm", "wordnet.lsa"),
        ("wordnet.lsa", "wordnet.wordllama"),
        ("wordnet.wordllama", "wordnet.lsa"),
    ):
        for rows in (3_000, 6_000):
            found.append(_real(f"{files[0]} > {files[1]}, {rows:,}", "LSA", pair(*files, rows=rows), files))
    for files in (
        ("wordnet.minilm", "web.e5"),
        ("wordnet.wordllama", "captions_de.e5"),
        ("captions_en.minilm", "web.e5"),
        ("web.minilm", "captions_de.e5"),
        ("web.e5", "wordnet.wordllama"),
        ("captions_de.e5", "wordnet.minilm"),
    ):
        found.append(_real(f"{files[0]} > {files[1]}", "other domain", mismatched(*files), files, truth="none"))
    for files in (
        ("captions_en.minilm", "wordnet.minilm"),
        ("web.e5", "captions_de.e5"),
        ("web.minilm", "wordnet.minilm"),
    ):
        found.append(_real(f"{files[0]} > {files[1]}", "other domain, one encoder", same_encoder(*files), files))
    for name in ("wordnet.minilm", "wordnet.wordllama", "web.e5", "captions_en.minilm"):
        found.append(_real(f"{name}, permuted", "permuted", changed(name, permute_coordinates), (name,), "none"))
        found.append(_real(f"{name}, Gaussian", "Gaussian", changed(name, gaussian), (name,), "none"))
    for files in (words, ("captions_en.minilm", "captions_de.e5"), ("web.minilm", "web.minilm"), ("web.e5", "web.e5")):
        found.append(_real(f"{files[0]} > {files[1]}, mirrored", "mirrored", mirrored(*files), files, "ambiguous", 2))
    return found


def planted_conditions() -> list[Condition]:
    """All conditions on artificial clouds."""
    found = []
    for group, kinds, truth in (
        ("alignable", ALIGNABLE, "pairs"),
        ("ambiguous", AMBIGUOUS, "ambiguous"),
        ("wrong", WRONG, "none"),
    ):
        for name, kind in kinds.items():
            for seed in range(2):
                load = planted(kind, ROWS, seed)
                found.append(Condition(f"{name} @ {seed}", f"planted, {group}", load, frozenset(), frozenset(), truth))
        for name, kind in list(kinds.items())[:: 4 if group == "wrong" else 3]:
            for rows in (1_500, 6_000):
                load = planted(kind, rows, 7)
                found.append(Condition(f"{name}, {rows:,}", f"planted, {group}", load, frozenset(), frozenset(), truth))
    return found


def conditions() -> list[Condition]:
    """All conditions."""
    return real_conditions() + planted_conditions()


# ---------------------------------------------------------------------------------------------------------------- fits


class Maps(NamedTuple):
    """The maps of one fit.

    Attributes:
        best: the map that the fit returns.
        searched: ``[r, d_x, d_y]``, maps of all restarts before they are settled.
    """

    best: LinearMap
    searched: np.ndarray


def fit_maps(cache: Path | None, condition: Condition, seed: int, split: Split) -> Maps:
    """The maps of a fit and of its searches, from the cache if they are there."""
    name = hashlib.sha256(f"{condition.name}, seed {seed}".encode()).hexdigest()[:16]
    path = None if cache is None else cache / f"{name}.npz"
    if path is not None and path.exists():
        stored = dict(np.load(path))
        source, target = (Centering(mean=stored[f"mean_{side}"], scale=stored[f"scale_{side}"]) for side in "xy")
        return Maps(LinearMap(W=jnp.asarray(stored["W"]), source=source, target=target), stored["searched"])
    # Real pairs are fitted as users fit them. The others need no better maps than those of the fast preset.
    config = Config() if condition.kind.startswith("pairs") else Config.fast()
    restarts = align_restarts(jax.random.key(seed), split.x, split.y, NUM_RESTARTS, config, keep="all")
    assert restarts.maps is not None
    best, searched = restarts.best.map, np.asarray(restarts.maps.W)
    if path is not None:
        sides = {
            f"{name}_{side}": getattr(centering, name)
            for side, centering in (("x", best.source), ("y", best.target))
            for name in ("mean", "scale")
        }
        np.savez(path, W=best.W, searched=searched, **sides)
    return Maps(best, searched)


@jax.jit
def gather(x: PaddedRows, y: PaddedRows, searched: jax.Array) -> tuple[Evidence, jax.Array]:
    """Evidence of every search, each field ``[r, ...]``, and the agreement of all searches, ``[r, r]``."""
    prepared = prepare(x, y, Config())
    maps = jax.vmap(prepared.subspace.restrict)(searched)
    evidence = jax.lax.map(lambda W: gather_evidence(jax.random.key(0), prepared.fitted, prepared.held_out, W), maps)
    return evidence, fine_agreement(maps, prepared.fitted.x)


def true_recalls(linear_map: LinearMap, split: Split) -> list[dict[str, Any]]:
    """Recall on true pairs at several index sizes, expected over random indexes, from X to Y and back."""
    x, y = (np.asarray(rows, np.float32) for rows in (split.x_eval, split.y_eval))
    mapped = (x - linear_map.source.mean) @ np.asarray(linear_map.W)
    mapped, target = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (mapped, y - linear_map.target.mean)
    )
    similarity = mapped @ target.T
    own, num_eval = np.diag(similarity), len(similarity)
    nearer = (similarity > own[:, None]).sum(1), (similarity > own[None]).sum(0)
    return [
        {
            "num_found": num_found,
            "index_size": size,
            # Of the other rows of a random index, fewer than num_found may be nearer than the partner.
            "recall": [
                float(scipy.stats.hypergeom.cdf(num_found - 1, num_eval - 1, ranks, size - 1).mean())
                for ranks in nearer
            ],
        }
        for size in (250, 500, 1_000, 2_000, 4_000)
        if size <= num_eval
        for num_found in (1, 10)
    ]


def truth_of(condition: Condition, truth: dict[str, float], oracle: dict[str, float]) -> str:
    """``"right"``, ``"half"``, ``"wrong"`` or ``"ambiguous"``, by the true pairs and the oracle."""
    if condition.truth != "pairs":
        return "wrong" if condition.truth == "none" else condition.truth
    return judge(truth, oracle)


def judge(truth: dict[str, float], oracle: dict[str, float]) -> str:
    """``"right"``, ``"half"`` or ``"wrong"``, by the scores of a map and of the oracle on true pairs."""
    if truth["foscttm"] >= SUCCESS_FOSCTTM or truth["top1"] < LOWEST_TOP1:
        return "wrong"
    return "right" if truth["top1"] >= oracle["top1"] / 2 else "half"


def run(folder: Path, listed: list[Condition], cache: Path | None = None) -> Iterator[dict[str, Any]]:
    """Fit every condition; yields one record per fit."""
    for condition in listed:
        split = condition.load(folder)
        oracle = evaluate_oracle(split)
        for seed in range(condition.seeds):
            maps = fit_maps(cache, condition, seed, split)
            x, y = prepare_inputs(jax.random.key(0), split.x, split.y, Config())
            evidence, agreement = gather(x, y, jnp.asarray(maps.searched))
            chosen = int(order_by_score(evidence.score)[0])
            truth = evaluate(maps.best, split)
            fields = {f.name: np.asarray(getattr(evidence, f.name)).tolist() for f in dataclasses.fields(evidence)}
            yield {
                "condition": condition.name,
                "kind": condition.kind,
                "corpora": sorted(condition.corpora),
                "encoders": sorted(condition.encoders),
                "rows": len(split.x),
                "seed": seed,
                "truth": truth,
                "oracle": oracle,
                "is": truth_of(condition, truth, oracle),
                "chosen": chosen,
                # Of all restarts.
                "evidence": fields,
                "agreement": float(agreement[0, 1]),
                "searched_top1": [
                    evaluate(dataclasses.replace(maps.best, W=jnp.asarray(W)), split)["top1"] for W in maps.searched
                ],
                "recalls": true_recalls(maps.best, split),
            }


def collect(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All fits, or the fits of an earlier run if ``--fits`` names its file."""
    if options.fits is not None:
        return json.loads(options.fits.read_text(encoding="utf-8"))["fits"]
    folder = check_folder(options.data)
    if folder is None:
        raise SystemExit("the population needs embeddings of several corpora: name their folder with --data")
    listed = [condition for condition in conditions() if options.only in f"{condition.kind}: {condition.name}"]
    missing = {name for name in FILES if not (folder / f"{name}.npy").exists()}
    listed = [condition for condition in listed if not any(name in condition.name for name in missing)]
    fits = []
    for fit in run(folder, listed, options.cache):
        fits.append(fit)
        truth, closeness = fit["truth"], fit["evidence"]["closeness"][fit["chosen"]]
        print(
            f"{fit['kind']}: {fit['condition']}, seed {fit['seed']}: top-1 {truth['top1']:.3f}, FOSCTTM "
            f"{truth['foscttm']:.4f}, {fit['is']}; closeness {' '.join(f'{value:.2f}' for value in closeness)}, "
            f"agreement {fit['agreement']:.2f}",
            flush=True,
        )
    return fits


def population_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark on the population."""
    parser = make_parser(description)
    add_folder_option(parser)
    add_json_option(parser)
    parser.add_argument("--fits", type=Path, metavar="FILE", help="fits of an earlier run, as --json wrote them")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="folder that keeps the maps of all fits")
    parser.add_argument("--only", default="", metavar="TEXT", help="fit only conditions whose kind and name have it")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Fit the population and write its fits."""
    options = population_parser(__doc__).parse_args(arguments)
    write_json(options.json, {"fits": collect(options)})


if __name__ == "__main__":
    main()
