"""Audit a leak: what do leaked vectors reveal about texts that have not leaked?

python examples/audit_leak.py [--data FOLDER] [--rows N]

Vectors of an encoder (WordLlama) have leaked, without their texts. The attacker has other texts of the same kind, knows
what these are about, and embeds them with another encoder (MiniLM). `align_restarts` finds the map between the two
spaces without a known pair. A classifier is trained on the attacker's vectors, mapped to the leaked space, and then
applied to the leaked vectors: is the gloss about a person, a living thing, a place, an act, a state or an artefact?

For comparison: the most frequent kind, a random rotation, the best rotation on true pairs, and a classifier that is
trained on the leaked texts themselves. Needs scikit-learn.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from common import centred_rows, load_rows, make_parser, print_table, random_rotation
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import cross_val_predict
from texts import KINDS, kinds_of, load_texts

from mv2v_jax import LinearMap, Verdict, align_restarts, apply, oracle


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Attack and print how often the kind of a leaked vector is found; returns the scores."""
    options = make_parser(__doc__).parse_args(arguments)
    data = load_rows(options)
    texts = load_texts(options, data)
    # All leaked vectors are used to align. The classifier is tested on those whose gloss shows its kind.
    own_kinds, leaked_kinds = kinds_of(texts.x), kinds_of(texts.y)
    own, asked = own_kinds >= 0, leaked_kinds >= 0
    found = align_restarts(jax.random.key(0), data.x, data.y, 2).best
    leaked = np.asarray(centred_rows(data.y[asked], found.map.target))

    def score(guessed: np.ndarray) -> dict[str, float]:
        right = leaked_kinds[asked]
        return {
            "accuracy": float(accuracy_score(right, guessed)),
            "f1": float(f1_score(right, guessed, average="macro")),
        }

    def classifier() -> LogisticRegression:
        return LogisticRegression(max_iter=1_000, C=10)

    def attack(linear_map: LinearMap) -> dict[str, float]:
        mapped = np.asarray(apply(linear_map, data.x[own]))
        return score(classifier().fit(mapped, own_kinds[own]).predict(leaked))

    rotation = jnp.asarray(random_rotation(*found.map.W.shape), found.map.W.dtype)
    results = {
        "the most frequent kind": score(DummyClassifier().fit(data.x[own], own_kinds[own]).predict(leaked)),
        "random rotation": attack(dataclasses.replace(found.map, W=rotation)),
        "mv2v_jax, no pair known": attack(found.map),
        "rotation of true pairs": attack(oracle(data.x, data.y_true, data.y)),
        "leaked texts and kinds known (cross-validated)": score(
            cross_val_predict(classifier(), leaked, leaked_kinds[asked], cv=5)
        ),
    }
    print(
        f"own texts of a known kind: {own.sum():,}; leaked vectors to classify: {asked.sum():,}; verdict on the map: "
        f"{Verdict(int(found.verdict)).name}"
    )
    print_table(
        f"kind of a leaked vector, of {len(KINDS)}",
        ["accuracy", "macro F1"],
        [[name, f"{s['accuracy']:.3f}", f"{s['f1']:.3f}"] for name, s in results.items()],
    )
    return results


if __name__ == "__main__":
    main()
