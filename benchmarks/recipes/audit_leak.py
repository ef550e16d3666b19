"""Audit: what a leaked set of vectors tells about texts that nobody has leaked.

python -m benchmarks.recipes.audit_leak [--data DIR] [--rows N --eval E] [--json FILE]

Vectors of an encoder (WordLlama) have leaked, their texts have not. Whoever has them has texts of the same kind, knows
what these are about, and embeds them with an encoder of their own (MiniLM). `align` finds the map without a pair; own
vectors are mapped to where the leaked ones are, a classifier (scikit-learn's logistic regression) is trained on them
there, and asked about the leaked ones. What it learns is what kind of thing a gloss is about: a person, a living thing,
a place, an act, a state, a made thing. Beside it: guessing, a map that is any rotation, the best rotation on true
pairs, and the classifier of someone who had the leaked texts.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import cross_val_predict

from benchmarks.common import add_data_options, any_rotation, load_split, print_environment, print_table, write_json
from benchmarks.recipes.texts import KINDS, kinds_of, load_texts
from mv2v_jax import LinearMap, Verdict, align_restarts, apply
from mv2v_jax.evaluation.metrics import oracle
from mv2v_jax.ops.masked import center_unit


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the arguments, attack, print the table; returns the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    texts = load_texts(options, split)
    # Everything leaked of y is used to align; what is asked about are those of a kind that can be told from the gloss.
    own, secret = kinds_of(texts.x), kinds_of(texts.y)
    known, asked = own >= 0, secret >= 0
    found = align_restarts(jax.random.key(0), split.x, split.y, 2).best
    leaked = np.asarray(center_unit(jnp.asarray(split.y[asked]), found.map.mean_y))

    def score(guessed: np.ndarray) -> dict[str, float]:
        right = secret[asked]
        return {
            "accuracy": float(accuracy_score(right, guessed)),
            "f1": float(f1_score(right, guessed, average="macro")),
        }

    def classifier() -> LogisticRegression:
        return LogisticRegression(max_iter=1_000, C=10)

    def transferred(linear_map: LinearMap) -> dict[str, float]:
        mapped = np.asarray(apply(linear_map, jnp.asarray(split.x[known])))
        return score(classifier().fit(mapped, own[known]).predict(leaked))

    lost = dataclasses.replace(found.map, W=jnp.asarray(any_rotation(*found.map.W.shape), found.map.W.dtype))
    results = {
        "guessing the most frequent kind": score(DummyClassifier().fit(split.x[known], own[known]).predict(leaked)),
        "any rotation": transferred(lost),
        "mv2v_jax, no pair known": transferred(found.map),
        "rotation of true pairs": transferred(oracle(split.x, split.y_true, split.y)),
        "leaked texts and kinds known (cross-validated)": score(
            cross_val_predict(classifier(), leaked, secret[asked], cv=5)
        ),
    }
    print(
        f"own texts of a known kind: {known.sum():,}; leaked vectors asked about: {asked.sum():,}; the fit was judged "
        f"{Verdict(int(found.verdict)).name}"
    )
    print_table(
        f"which of {len(KINDS)} kinds a leaked vector is about",
        ["", "accuracy", "macro F1"],
        [[name, f"{s['accuracy']:.3f}", f"{s['f1']:.3f}"] for name, s in results.items()],
    )
    write_json(options.json, {"environment": environment, "data": data, "scores": results})
    return results


if __name__ == "__main__":
    main()
