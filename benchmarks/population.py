"""Fits of which it is known whether they are right, on which `benchmarks.verdict` and `benchmarks.selection` test scores.

    python -m benchmarks.population --data FOLDER [--cache FOLDER] [--only TEXT] [--json FILE]

The population holds real pairs of encoders of four corpora at several sizes, views of one encoder, unlike and mismatched
parts of corpora, real rows whose geometry was destroyed, and the artificial clouds of `benchmarks.planted_kinds`. Each
condition names its corpus and its encoders, so that constants can be fitted without some of them and reported on them.
Real rows are reduced to 256 dimensions and 3,000 rows per space where a condition does not say otherwise, so that most
fits share their compiled programs.

--cache keeps the maps of every fit in a folder, so that a later run only computes the evidence and the verdict again.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Split, add_folder_option, add_json_option, check_folder, evaluate, make_parser, write_json
from benchmarks.planted_kinds import ALIGNABLE, AMBIGUOUS, WRONG, Kind, rotation
from mv2v_jax import Config, LinearMap, align_restarts
from mv2v_jax.evaluation import metrics

NUM_EVAL = 2_000
# The default of the command line: a verdict also rests on the agreement of restarts.
NUM_RESTARTS = 2
ROWS = 3_000
MAX_DIMS = 256

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
        truth: ``"pairs"``: true pairs of the evaluation rows decide whether a map is right. ``"ambiguous"``: another map
            is as good, so that no map may be called aligned. ``"none"``: there is no right map.
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
    """Rows of one file as float32; LSA may be in the working folder, since it is made from the texts."""
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


def pair(source: str, target: str, rows: int = ROWS, offset: int = 0, max_dims: int = MAX_DIMS, eval_rows=NUM_EVAL) -> Load:
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
        return protocol(*(signs * (rows - rows.mean(0)) for rows in (read(folder, name)[part] for name in (source, target))))

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
    """Both sides draw texts with topic proportions of their own; without a concentration half of the topics are shared."""

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
    for files in (("wordnet.minilm", "wordnet.lsa"), ("wordnet.lsa", "wordnet.wordllama"), ("wordnet.wordllama", "wordnet.lsa")):
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
    for files in (("captions_en.minilm", "wordnet.minilm"), ("web.e5", "captions_de.e5"), ("web.minilm", "wordnet.minilm")):
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


@functools.partial(jax.jit, static_argnames="num_restarts")
def _fit(key, x, y, num_restarts):
    return align_restarts(key, x, y, num_restarts, Config(), keep="all")


def cached_maps(cache: Path | None, condition: Condition, seed: int, split: Split) -> dict[str, np.ndarray]:
    """The maps of a fit and of its searches, from the cache if they are there."""
    name = hashlib.sha256(f"{condition.name}, seed {seed}".encode()).hexdigest()[:16]
    path = None if cache is None else cache / f"{name}.npz"
    if path is not None and path.exists():
        return dict(np.load(path))
    # Real pairs are fitted as users fit them. The others need no better maps than those of the fast preset.
    config = Config() if condition.kind.startswith("pairs") else Config.fast()
    restarts = align_restarts(jax.random.key(seed), split.x, split.y, NUM_RESTARTS, config, keep="all")
    maps = {"W": restarts.best.map.W, "searched": restarts.maps.W, "chosen": restarts.chosen}
    maps |= {"mean_x": restarts.best.map.source.mean, "mean_y": restarts.best.map.target.mean}
    maps |= {"scale_x": restarts.best.map.source.scale, "scale_y": restarts.best.map.target.scale}
    maps = {name: np.asarray(value) for name, value in maps.items()}
    if path is not None:
        np.savez(path, **maps)
    return maps
