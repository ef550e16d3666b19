"""Data sets that are unlike one corpus seen by two encoders through samples of equal size: see `corpora`.

| name | what is aligned |
|---|---|
| ``web``, ``web-back`` | StackOverflow titles, tweets and Wikipedia sentences; MiniLM to e5, and back |
| ``captions``, ``captions-back`` | captions of photographs; English under MiniLM to German under e5, and back |
| ``wordnet-8k`` | WordNet, MiniLM to WordLlama, 8,000 rows per side. The data sets down to ``axis`` are changes of it |
| ``skew-C-DRAW`` | topic proportions of its own for each side, from Dirichlet(C) |
| ``overlap`` | each side has 12 of 18 topics, of which 6 are shared and evaluated |
| ``half-web`` | half of the rows of X are from the web; ``half-web-without`` has only the other half |
| ``long-one``, ``long-percent`` | one row of X is 100,000 times as long, or 1 % of the rows 100 times |
| ``axis-SHARE`` | X has a private axis with this share of its variance |
| ``wordnet-1.5k``, ``wordnet-26k-1.5k``, ... | other numbers of rows per side, or of X and of Y |
| ``lsa`` | WordNet, MiniLM to TF-IDF + SVD |

A folder holds ``wordnet.ENCODER.npy``, ``web.ENCODER.npy`` and ``captions_LANGUAGE.ENCODER.npy``, row i of the files of
one corpus the same text. As many data sets as possible have equal shapes, so that they share what is compiled.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from benchmarks.common import Rows, Split, pick_rows, read_file, split_rows, to_float32
from benchmarks.reference import preprocess

# Rows at the end of the files that evaluate.
NUM_EVAL = {"wordnet": 8_192, "web": 6_000, "captions": 4_000}
# Fitting rows per side of the WordNet data sets that are changed, and of the small ones.
PER_SIDE, FEW, FEWER = 8_000, 3_000, 1_500
NUM_TOPICS, TOPICS_PER_SIDE, SHARED_TOPICS = 18, 12, 6
# Rows that the topics are fitted on.
TOPIC_ROWS = 20_000
CONCENTRATIONS, NUM_DRAWS = (1.0, 0.3), 3
ONE_TIMES, PERCENT_TIMES = 1e5, 100.0
AXIS_SHARES = (0.05, 0.14, 0.30, 0.50)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One data set.

    Attributes:
        name: name in the table.
        build: from the folder of embeddings to raw rows in float32, split; raises `FileNotFoundError` where a file is
            missing.
    """

    name: str
    build: Callable[[Path], Split]


# ------------------------------------------------------------------------------------------------- two files, all rows


def paired_files(folder: Path, corpus: str, source: str, target: str) -> Split:
    """All rows of two files of one corpus, split by the protocol."""
    return to_float32(split_rows(read_file(folder, source), read_file(folder, target), NUM_EVAL[corpus]))


# ------------------------------------------------------------------------------------------------------ WordNet, chosen


def wordnet(folder: Path, x: Rows, y: Rows, evaluation: Rows | None = None) -> Split:
    """WordNet under MiniLM and WordLlama, with rows ``x`` and ``y`` of the files; evaluated on the last rows."""
    source, target = read_file(folder, "wordnet.minilm"), read_file(folder, "wordnet.wordllama")
    rows = slice(len(source) - NUM_EVAL["wordnet"], None) if evaluation is None else evaluation
    return to_float32(pick_rows(source, target, x, y, rows))


def fitting_halves(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows that X may have, and of those that Y may have: no text is in both."""
    num_rows = len(read_file(folder, "wordnet.minilm")) - NUM_EVAL["wordnet"]
    return np.arange(num_rows // 2), np.arange(num_rows // 2, num_rows)


def wordnet_first(folder: Path, num_x: int | None, num_y: int | None) -> Split:
    """The first rows of both halves; all of a half for ``None``."""
    of_x, of_y = fitting_halves(folder)
    return wordnet(folder, of_x[:num_x], of_y[:num_y])


# --------------------------------------------------------------------------------------------------------------- topics


@functools.cache
def topics(folder: Path) -> np.ndarray:
    """The topic of every row of WordNet, from k-means of the centred unit rows under MiniLM: ``[n]``."""
    rows, _ = preprocess(np.asarray(read_file(folder, "wordnet.minilm")))
    return KMeans(NUM_TOPICS, n_init=1, max_iter=30, random_state=0).fit(rows[:TOPIC_ROWS]).predict(rows)


def skewed(folder: Path, concentration: float, draw: int) -> Split:
    """Each side with topic proportions of its own, from a Dirichlet distribution; the smaller, the more they differ.

    Rows are drawn one by one without replacement, so that a topic that runs out leaves its share to the others.
    """
    rng = np.random.default_rng([draw, round(1_000 * concentration)])
    topic = topics(folder)

    def draw_from(half: np.ndarray) -> np.ndarray:
        counts = np.bincount(topic[half], minlength=NUM_TOPICS)
        weights = (rng.dirichlet(np.full(NUM_TOPICS, concentration)) / np.maximum(counts, 1))[topic[half]]
        # The largest keys of Gumbel noise are such a draw.
        keys = np.log(np.maximum(weights, np.finfo(np.float64).tiny)) + rng.gumbel(size=len(half))
        return half[np.sort(np.argsort(-keys)[:PER_SIDE])]

    of_x, of_y = fitting_halves(folder)
    return wordnet(folder, draw_from(of_x), draw_from(of_y))


def overlapping(folder: Path) -> Split:
    """Each side with some of the topics, only few of which are shared; evaluated on texts of the shared ones."""
    rng = np.random.default_rng(0)
    topic, order = topics(folder), rng.permutation(NUM_TOPICS)
    shared, own = order[:SHARED_TOPICS], TOPICS_PER_SIDE - SHARED_TOPICS
    only_x, only_y = order[SHARED_TOPICS : SHARED_TOPICS + own], order[SHARED_TOPICS + own :][:own]

    def draw_from(half: np.ndarray, only: np.ndarray) -> np.ndarray:
        pool = half[np.isin(topic[half], shared) | np.isin(topic[half], only)]
        return np.sort(rng.choice(pool, min(PER_SIDE, len(pool)), replace=False))

    of_x, of_y = fitting_halves(folder)
    evaluation = np.arange(len(topic))[-NUM_EVAL["wordnet"] :]
    evaluation = evaluation[np.isin(topic[evaluation], shared)]
    return wordnet(folder, draw_from(of_x, only_x), draw_from(of_y, only_y), evaluation)


# --------------------------------------------------------------------------------------------------------- changed rows


def half_web(folder: Path, with_web: bool) -> Split:
    """Half of the rows of X are of another corpus, of which Y has nothing; or the same rows of X without these."""
    split = wordnet_first(folder, PER_SIDE // 2, PER_SIDE)
    if not with_web:
        return split
    web = np.asarray(read_file(folder, "web.minilm")[: PER_SIDE - len(split.x)], np.float32)
    # Texts of the web have no partner under WordLlama. The oracle leaves zero rows out.
    no_partners = np.zeros((len(web), split.y_true.shape[1]), np.float32)
    return dataclasses.replace(
        split, x=np.concatenate([split.x, web]), y_true=np.concatenate([split.y_true, no_partners])
    )


def with_long_rows(split: Split, times: float, share: float | None, both: bool) -> Split:
    """Some rows of X, or of both sides, are ``times`` as long: this share of the rows, or one row for ``None``."""
    rng = np.random.default_rng(0)

    def lengthened(rows: np.ndarray) -> np.ndarray:
        num_long = 1 if share is None else max(1, round(share * len(rows)))
        rows = rows.copy()
        rows[rng.choice(len(rows), num_long, replace=False)] *= np.float32(times)
        return rows

    return dataclasses.replace(split, x=lengthened(split.x), y=lengthened(split.y) if both else split.y)


def with_private_axis(split: Split, share: float) -> Split:
    """X also varies along a direction of its own: plus or minus one length, at random, ``share`` of its variance then.

    The rows to evaluate on vary in the same way, because the axis belongs to the encoder.
    """
    rng = np.random.default_rng(0)
    axis = rng.normal(size=split.x.shape[1])
    axis *= np.sqrt(split.x.var(axis=0).sum() * share / (1 - share)) / np.linalg.norm(axis)

    def varied(rows: np.ndarray) -> np.ndarray:
        return (rows + rng.choice([-1.0, 1.0], size=(len(rows), 1)) * axis).astype(np.float32)

    return dataclasses.replace(split, x=varied(split.x), x_eval=varied(split.x_eval))


# ----------------------------------------------------------------------------------------------------------------- list


def corpora() -> list[Corpus]:
    """All data sets, in the order of the table."""

    def two_files(name: str, corpus: str, source: str, target: str) -> Corpus:
        return Corpus(name, lambda folder: paired_files(folder, corpus, source, target))

    def changed(name: str, build: Callable[..., Split], *args: Any) -> Corpus:
        return Corpus(name, lambda folder: build(folder, *args))

    def changed_rows(name: str, change: Callable[..., Split], *args: Any) -> Corpus:
        return Corpus(name, lambda folder: change(wordnet_first(folder, PER_SIDE, PER_SIDE), *args))

    return [
        two_files("web", "web", "web.minilm", "web.e5"),
        two_files("web-back", "web", "web.e5", "web.minilm"),
        two_files("captions", "captions", "captions_en.minilm", "captions_de.e5"),
        two_files("captions-back", "captions", "captions_de.e5", "captions_en.minilm"),
        changed("wordnet-8k", wordnet_first, PER_SIDE, PER_SIDE),
        *(changed(f"skew-{c}-{draw}", skewed, c, draw) for c in CONCENTRATIONS for draw in range(NUM_DRAWS)),
        changed("overlap", overlapping),
        changed("half-web", half_web, True),
        changed("half-web-without", half_web, False),
        changed_rows("long-one", with_long_rows, ONE_TIMES, None, False),
        changed_rows("long-percent", with_long_rows, PERCENT_TIMES, 0.01, False),
        changed_rows("long-percent-both", with_long_rows, PERCENT_TIMES, 0.01, True),
        *(changed_rows(f"axis-{share:.2f}", with_private_axis, share) for share in AXIS_SHARES),
        changed("wordnet-1.5k", wordnet_first, FEWER, FEWER),
        changed("wordnet-3k", wordnet_first, FEW, FEW),
        changed("wordnet-26k-1.5k", wordnet_first, None, FEWER),
        changed("wordnet-1.5k-26k", wordnet_first, FEWER, None),
        changed("wordnet", wordnet_first, None, None),
        two_files("lsa", "wordnet", "wordnet.minilm", "wordnet.lsa"),
    ]
