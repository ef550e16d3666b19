"""Move an index of stored vectors to a new encoder without embedding a document again.

python -m benchmarks.recipes.move_index [--data DIR] [--rows N --eval E] [--queries 1000] [--json FILE]

An index holds raw vectors of an old encoder (WordLlama); its texts are gone or too many to embed again. Queries come
from a new encoder (MiniLM), of which you have vectors of other texts of the same kind. `align` finds the map from the
old space to the new one, `apply(..., frame="target")` moves the index. Judged by what the new encoder would have found
had every document been embedded again: of its ten nearest documents, how many does the moved index give (recall@10),
and how far up (nDCG@10, ten points for the nearest, one for the tenth)?
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import ndcg_score

from benchmarks.common import add_data_options, any_rotation, load_split, print_environment, print_table, write_json
from mv2v_jax import LinearMap, align_restarts, apply, refine_contrastive
from mv2v_jax.evaluation.metrics import oracle
from mv2v_jax.ops.masked import unit_rows

TOP = 10


def similarities(queries: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Cosine of every query with every document."""
    return np.asarray(unit_rows(jnp.asarray(queries)) @ unit_rows(jnp.asarray(index)).T)


def judge(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Recall@10 and nDCG@10 of similarities ``found [q, n]``, where those ``wanted [q, n]`` say what is right."""
    best = np.argsort(-wanted, axis=1)[:, :TOP]
    gains = np.zeros_like(wanted)
    np.put_along_axis(gains, best, np.arange(TOP, 0, -1, dtype=gains.dtype)[None], axis=1)
    nearest = np.argpartition(-found, TOP, axis=1)[:, :TOP]
    recall = np.mean([len(np.intersect1d(a, b)) / TOP for a, b in zip(nearest, best, strict=True)])
    return {"recall": float(recall), "ndcg": float(ndcg_score(gains, found, k=TOP))}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the arguments, move the index, print the table; returns the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--queries", type=int, default=1_000, help="texts that judge, of those held out")
    parser.set_defaults(source="wordllama", target="minilm")
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    # The documents are the texts of x: their old vectors are the index, their new ones only judge.
    index, embedded_again = split.x, split.y_true
    old_queries, new_queries = split.x_eval[: options.queries], split.y_eval[: options.queries]
    restarts = align_restarts(jax.random.key(0), index, split.y, 2)
    refined = refine_contrastive(jax.random.key(1), restarts.best.map, jnp.asarray(index), jnp.asarray(split.y))
    wanted = similarities(new_queries, embedded_again)

    def moved(linear_map: LinearMap) -> dict[str, float]:
        return judge(
            similarities(new_queries, np.asarray(apply(linear_map, jnp.asarray(index), frame="target"))), wanted
        )

    turned = index @ any_rotation(index.shape[1], new_queries.shape[1])
    results = {
        "moved by any rotation": judge(similarities(new_queries, turned), wanted),
        "before: old encoder, old index": judge(similarities(old_queries, index), wanted),
        "after: new encoder, moved index": moved(restarts.best.map),
        "after refine_contrastive": moved(refined.map),
        "moved by the rotation of true pairs": moved(oracle(index, embedded_again, split.y)),
    }
    print_table(
        f"{len(new_queries):,} queries, {len(index):,} documents; all of them embedded again would be 1",
        ["", "recall@10", "nDCG@10"],
        [[name, f"{s['recall']:.3f}", f"{s['ndcg']:.3f}"] for name, s in results.items()],
    )
    write_json(options.json, {"environment": environment, "data": data, "scores": results})
    return results


if __name__ == "__main__":
    main()
