"""Move an index of stored vectors to a new encoder without embedding its documents again.

python examples/move_index.py [--data FOLDER] [--rows N] [--queries 1000]

The index holds raw vectors of an old encoder (WordLlama); the documents are gone, or too many to embed again. Queries
come from a new encoder (MiniLM), of which you have vectors of other texts of the same kind. `align_restarts` finds the
map from the old space to the new one, and `apply(..., frame="target")` moves the index.

A result is right if the new encoder would find it with all documents embedded again. recall@10 is the share of its ten
nearest documents that are found; nDCG@10 also counts their order, with a gain of ten for the nearest document and of
one for the tenth.
"""

import jax
import jax.numpy as jnp
import numpy as np
from common import load_rows, make_parser, print_table, random_rotation, unit_rows

from mv2v_jax import LinearMap, align_restarts, apply, oracle
from mv2v_jax.training import refine_contrastive

TOP = 10


def similarities(queries: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Cosine of every query with every document, ``[q, n]``."""
    return np.asarray(unit_rows(jnp.asarray(queries)) @ unit_rows(jnp.asarray(index)).T)


def evaluate_search(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Recall@10 and nDCG@10 of similarities ``found [q, n]``; the largest entries of ``wanted [q, n]`` are right."""
    right, ours = (np.argsort(-similarity, axis=1)[:, :TOP] for similarity in (wanted, found))
    gains = np.zeros_like(wanted)
    np.put_along_axis(gains, right, np.arange(TOP, 0, -1, dtype=gains.dtype)[None], axis=1)
    gained = np.take_along_axis(gains, ours, axis=1)
    discounts = 1 / np.log2(np.arange(TOP) + 2)
    best = discounts @ np.arange(TOP, 0, -1)
    return {"recall": float(np.mean(gained > 0)), "ndcg": float(np.mean(gained @ discounts / best))}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Move the index and print how much of the search survives; returns the scores."""
    parser = make_parser(__doc__)
    parser.add_argument("--queries", type=int, default=1_000, help="number of held-out texts that search")
    options = parser.parse_args(arguments)
    data = load_rows(options, source="wordllama", target="minilm")
    # The documents are the texts of x. Their vectors of the new encoder only evaluate.
    index, embedded_again = data.x, data.y_true
    old_queries, new_queries = data.x_eval[: options.queries], data.y_eval[: options.queries]
    wanted = similarities(new_queries, embedded_again)

    fitted = align_restarts(jax.random.key(0), index, data.y, 2).best.map
    refined = refine_contrastive(jax.random.key(1), fitted, jnp.asarray(index), jnp.asarray(data.y)).map

    def search_moved(linear_map: LinearMap) -> dict[str, float]:
        moved = apply(linear_map, index, frame="target")
        return evaluate_search(similarities(new_queries, np.asarray(moved)), wanted)

    turned = index @ random_rotation(index.shape[1], new_queries.shape[1])
    results = {
        "index moved by a random rotation": evaluate_search(similarities(new_queries, turned), wanted),
        "before: old encoder, old index": evaluate_search(similarities(old_queries, index), wanted),
        "after: new encoder, moved index": search_moved(fitted),
        "after refine_contrastive": search_moved(refined),
        "index moved by the rotation of true pairs": search_moved(oracle(index, embedded_again, data.y)),
    }
    print_table(
        f"{len(new_queries):,} queries, {len(index):,} documents; 1 is the index with all documents embedded again",
        ["recall@10", "nDCG@10"],
        [[name, f"{s['recall']:.3f}", f"{s['ndcg']:.3f}"] for name, s in results.items()],
    )
    return results


if __name__ == "__main__":
    main()
