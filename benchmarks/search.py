"""What does a map do to a search? An index moved, queries mapped, first stages rescored, metrics, mixed indexes.

    python -m benchmarks.search [--data FOLDER] [--rows N --eval E] [--queries 1000] [--seed 0] [--json FILE]

Documents are the texts of X, embedded by the old encoder (``--source``, WordLlama) and, to judge, by the new one
(``--target``, MiniLM). Queries are texts of the evaluation rows. recall@10 is the share of the ten documents that a
search by the new encoder alone finds. The table by metric takes the encoders the other way round, because only
WordLlama's rows have unequal lengths; "--metric" stands for the lengths that ``mv2v apply --metric`` restores. The last
table is what ``mv2v evaluate`` gives on the evaluation rows.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.common import (
    Split,
    add_data_options,
    add_seed_option,
    load_split,
    make_parser,
    print_environment,
    print_table,
    write_json,
)
from mv2v_jax import Config, LinearMap, evaluate_search, invert, oracle
from mv2v_jax.cli.lengths import describe_metrics
from mv2v_jax.evaluation.search import score_search
from mv2v_jax.portable import PortableMap, calibrate_scores, from_map
from mv2v_jax.profiles.profile import profile_rows
from mv2v_jax.runs.compiled import align_with_progress
from mv2v_jax.similarity import Metric, similarities, unit

TOP, FIRST_STAGES, PAIRS, SHARES = 10, (50, 200), (250, 500, 1_000, 2_000, 4_000), (0.2, 0.5, 0.8)
METRICS: tuple[Metric, ...] = ("cosine", "dot", "l2")

Rows = list[list[str]]


def best(scores: np.ndarray, count: int = TOP) -> np.ndarray:
    """The numbers of the best documents of each query, ``[q, count]``."""
    return np.argpartition(-scores, count - 1, axis=1)[:, :count]


def shares_found(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Share of the wanted documents that each query found: ``[q]``."""
    return (found[:, :, None] == wanted[:, None, :]).any(axis=1).mean(axis=1)


def describe(found: np.ndarray, wanted: np.ndarray) -> str:
    """recall@10 with its interval."""
    return str(score_search(np.ones(1), shares_found(found, wanted)).overlap10)


def rescore(scores: np.ndarray, exact: np.ndarray, count: int) -> np.ndarray:
    """The best documents after the best ``count`` of a first stage were embedded again."""
    first = best(scores, count)
    order = best(np.take_along_axis(exact, first, axis=1))
    return np.take_along_axis(first, order, axis=1)


def measure_move(split: Split, linear_map: PortableMap, num_queries: int, seed: int) -> Rows:
    """recall@10 of every way to search an index of the old encoder."""
    old_queries, queries = split.x_eval[:num_queries], split.y_eval[:num_queries]
    exact = similarities(queries, split.y_true, "cosine")
    wanted = best(exact)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(max(split.x.shape[1], queries.shape[1]),) * 2))[0]
    turned = split.x @ turn[: split.x.shape[1], : queries.shape[1]].astype(np.float32)

    def moved(by: PortableMap) -> np.ndarray:
        return similarities(queries, by.apply(split.x, frame="target"), "cosine")

    mapped_queries = linear_map.apply(queries, frame="target", inverse=True)
    ways = {
        "index turned at random": best(similarities(queries, turned, "cosine")),
        "old queries, old index": best(similarities(old_queries, split.x, "cosine")),
        "queries mapped, index untouched": best(similarities(mapped_queries, split.x, "cosine")),
        "index moved": best(moved(linear_map)),
        **{
            f"index moved, best {n} embedded again": rescore(moved(linear_map), exact, n)
            for n in FIRST_STAGES
            if n < len(split.x)
        },
    }
    for count in (count for count in PAIRS if count <= len(split.x)):
        fitted = from_map(oracle(split.x[:count], split.y_true[:count], split.y))
        ways[f"index moved by a rotation of {count:,} true pairs"] = best(moved(fitted))
    return [[name, describe(found, wanted)] for name, found in ways.items()]


def measure_metrics(split: Split, linear_map: PortableMap, num_queries: int) -> Rows:
    """recall@10 by metric in an index of rows of unequal lengths: of moved rows, and of mapped queries."""
    queries = split.x_eval[:num_queries]
    # The map leads from the encoder of unequal lengths; here the index is to hold its rows.
    units = unit(linear_map.apply(split.y_true, frame="target", inverse=True))
    lengths = np.linalg.norm(split.x, axis=1, keepdims=True)

    def map_back(rows: np.ndarray, metric: Metric) -> np.ndarray:
        return linear_map.apply(rows, frame="target", inverse=True, metric=metric)

    rows = []
    for metric in METRICS:
        wanted = best(similarities(queries, split.x, metric))
        ways = (
            *(similarities(map_back(split.y_eval[:num_queries], m), split.x, metric) for m in ("cosine", metric)),
            *(similarities(queries, map_back(split.y_true, m), metric) for m in ("cosine", metric)),
            similarities(queries, units * lengths.mean(), metric),
            similarities(queries, units * lengths, metric),
        )
        rows.append([metric, *(f"{shares_found(best(scores), wanted).mean():.3f}" for scores in ways)])
    return rows


def measure_mixed(split: Split, linear_map: PortableMap, num_queries: int, seed: int) -> Rows:
    """An index of the new encoder in which some rows are mapped: how often they are found, before and after."""
    queries = split.y_eval[:num_queries]
    wanted = best(similarities(queries, split.y_true, "cosine"))
    moved = linear_map.apply(split.x, frame="target")
    rows = []
    for share in SHARES:
        is_mapped = np.random.default_rng(seed).random(len(moved)) < share
        scores = similarities(queries, np.where(is_mapped[:, None], moved, split.y_true), "cosine")
        # The fitting rows of the target are texts that are not in this index.
        calibration = calibrate_scores(split.y[:1_000], split.y_true[~is_mapped], moved[is_mapped])
        for name, calibrated in (("as they are", scores), ("calibrated", calibration.apply(scores, is_mapped))):
            found = best(calibrated)
            rows.append([f"{share:.0%}, {name}", f"{is_mapped[found].mean():.0%}", describe(found, wanted)])
    return rows


def measure_partners(split: Split, linear_map: LinearMap) -> Rows:
    """What `evaluate_search` gives on the evaluation rows, in both directions."""
    directions = {
        "forth": (linear_map, split.x_eval, split.y_eval),
        "back": (invert(linear_map), split.y_eval, split.x_eval),
    }
    return [[name, *map(str, evaluate_search(*arguments))] for name, arguments in directions.items()]


def main(arguments: list[str] | None = None) -> dict[str, Rows]:
    """Fit, measure and print the tables; returns their rows."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    parser.set_defaults(source="wordllama", target="minilm")
    parser.add_argument("--queries", type=int, default=1_000, help="number of queries (default: 1,000)")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    key, config = jax.random.key(options.seed), Config.preset("default")
    fitted = align_with_progress(key, split.x, split.y, config, lambda *_: None, num_restarts=2).result
    print(fitted, flush=True)
    profiles = profile_rows(split.x), profile_rows(split.y)
    linear_map = dataclasses.replace(from_map(fitted.best.map), profiles=profiles)
    for name, profile in zip((options.source, options.target), profiles, strict=True):
        assert profile is not None
        print(f"an index of {name} suits {describe_metrics(profile)}", flush=True)
    size = f"{len(split.x):,} documents, {min(options.queries, len(split.x_eval)):,} queries"
    header = "recall@10 (95 % interval)"
    mapped, moved = "queries mapped", "moved"
    ways = [
        mapped,
        f"{mapped}, --metric",
        moved,
        f"{moved}, --metric",
        f"{moved}, one length",
        f"{moved}, true lengths",
    ]
    measure: dict[str, tuple[Callable[[], Rows], str, list[str]]] = {
        "move": (
            lambda: measure_move(split, linear_map, options.queries, options.seed),
            f"an index of {options.source}, queries of {options.target}: {size}",
            ["search", header],
        ),
        "metrics": (
            lambda: measure_metrics(split, linear_map, options.queries),
            f"an index of {options.source}, rows moved or queries mapped from {options.target}: recall@10",
            ["metric", *ways],
        ),
        "mixed": (
            lambda: measure_mixed(split, linear_map, options.queries, options.seed),
            f"an index of {options.target} in which some rows are mapped from {options.source}",
            ["mapped rows, scores", "mapped rows among the first 10", header],
        ),
        "partners": (
            lambda: measure_partners(split, fitted.best.map),
            f"true partners among {len(split.x_eval):,} rows",
            ["", "recall@1", "recall@5", "recall@10", "nDCG@10", "overlap@10"],
        ),
    }
    results = {}
    for name, (function, title, columns) in measure.items():
        results[name] = function()
        print_table(title, columns, results[name])
    write_json(options.json, {"environment": environment, "data": data, **results})
    return results


if __name__ == "__main__":
    main()
