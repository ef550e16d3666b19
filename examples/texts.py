"""The texts behind the rows: which row is which text, its words as numbers, and the kind of thing it is about."""

import argparse
import gzip
import json
import re
import zlib

import numpy as np

from mv2v_jax import DemoData, DemoTexts, load_demo_texts

# Patterns for the beginning of a gloss. They match many glosses, of kinds that differ clearly, with few mistakes.
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
    "artefact": r"(a |an |the )?(\w+[ ,-]+){0,3}(device|instrument|machine|tool|garment|vehicle|building|structure|"
    r"container|room|weapon|cloth|fabric|furniture|boat|ship|equipment)\b",
}


def load_texts(options: argparse.Namespace, data: DemoData) -> DemoTexts:
    """The texts of the rows that `common.load_rows` returns for the same options."""
    if options.data is None:
        bundled = load_demo_texts()
        return DemoTexts(x=bundled.x[: len(data.x)], y=bundled.y[: len(data.y)], evaluated=bundled.evaluated)
    texts = json.loads(gzip.decompress((options.data / "wordnet.texts.json.gz").read_bytes()))
    num_fit = len(texts) - len(data.x_eval)
    half = num_fit // 2
    return DemoTexts(x=texts[:half][: len(data.x)], y=texts[half:num_fit][: len(data.y)], evaluated=texts[num_fit:])


def hash_words(texts: list[str], num_words: int, num_buckets: int) -> np.ndarray:
    """The first ``num_words`` distinct words of each text, int32: words are hashed to 1, ..., ``num_buckets``.

    0 fills up the rows of texts with fewer words.
    """
    words = np.zeros((len(texts), num_words), np.int32)
    for row, text in enumerate(texts):
        hashes = (1 + zlib.crc32(word.encode()) % num_buckets for word in re.findall(r"\w\w+", text.lower()))
        first = list(dict.fromkeys(hashes))[:num_words]
        words[row, : len(first)] = first
    return words


def kinds_of(texts: list[str]) -> np.ndarray:
    """The kind of thing each text is about, as an index into `KINDS`; -1 for a gloss that matches no pattern."""
    patterns = [re.compile(pattern) for pattern in KINDS.values()]

    def kind(text):
        gloss = text.split(": ", 1)[-1].lower()
        return next((number for number, pattern in enumerate(patterns) if pattern.match(gloss)), -1)

    return np.array([kind(text) for text in texts])
