"""The texts behind the embeddings: which row is which text, words as numbers, and what a text is about."""

import argparse
import gzip
import json
import re
from importlib import resources
from typing import NamedTuple

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

from benchmarks.common import Split, find_data

# Of a gloss, its beginning: enough of them, about things that differ, and hardly ever wrong.
KINDS = {
    "person": r"(a |an |the )?(\w+ ){0,3}(someone|person|man|woman|member of|worker|musician|writer|poet|leader|"
    r"soldier|statesman|painter|player|scientist|politician|composer)\b",
    "living thing": r"(\w+[ ,-]+){0,6}(genus|family|species|order of|plants?|trees?|shrubs?|herbs?|fish|birds?|"
    r"insects?|mammals?|fungus|fungi|animal|moth|snake|lizard|orchid|fern)\b",
    "place": r"(\w+[ ,-]+){0,4}(city|town|river|capital|island|mountain|port|county|republic|lake|"
    r"peninsula|region)\b",
    "act": r"(the |an |a )?(act|action|activity|process|practice|procedure) (of|by|that|or)\b",
    "state": r"(the |a |an )?(\w+ )?(state|quality|condition|property|trait|feeling|inability|ability) "
    r"(of|that|or|in)\b",
    "made thing": r"(a |an |the )?(\w+[ ,-]+){0,3}(device|instrument|machine|tool|garment|vehicle|building|structure|"
    r"container|room|weapon|cloth|fabric|furniture|boat|ship|equipment)\b",
}


class Texts(NamedTuple):
    """Texts of a `Split`, in its order."""

    x: list[str]
    y: list[str]
    judged: list[str]


def load_texts(options: argparse.Namespace, split: Split) -> Texts:
    """The texts of rows that `load_split` gave for the same options."""
    folder = find_data(options.data)
    path = (
        resources.files("mv2v_jax") / "data" / "wordnet14k.texts.json.gz"
        if folder is None
        else folder / "wordnet.texts.json.gz"
    )
    with path.open("rb") as file:
        texts = json.loads(gzip.decompress(file.read()))
    first, last = len(split.x), len(split.x) + len(split.y)
    return Texts(x=texts[:first], y=texts[first:last], judged=texts[last : last + len(split.x_eval)])


def hash_words(texts: list[str], num_words: int, num_buckets: int) -> np.ndarray:
    """The first ``num_words`` distinct words of each text as numbers from 1, 0 where there are fewer: int32."""
    counts = HashingVectorizer(n_features=num_buckets, norm=None, alternate_sign=False, binary=True).transform(texts)
    words = np.zeros((len(texts), num_words), np.int32)
    for row, (first, last) in enumerate(zip(counts.indptr, counts.indptr[1:], strict=False)):
        found = counts.indices[first : min(last, first + num_words)]
        words[row, : len(found)] = found + 1
    return words


def kinds_of(texts: list[str]) -> np.ndarray:
    """What each text is about, a number into `KINDS`; -1 where its gloss does not begin like any of them."""
    patterns = [re.compile(pattern) for pattern in KINDS.values()]

    def kind(text):
        gloss = text.split(": ", 1)[-1].lower()
        return next((number for number, pattern in enumerate(patterns) if pattern.match(gloss)), -1)

    return np.array([kind(text) for text in texts])
