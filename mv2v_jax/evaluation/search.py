"""How well mapped rows search: recall, nDCG and overlap on true pairs, with bootstrap intervals.

Like all of this folder it needs labels, and nothing that fits imports it.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from mv2v_jax.evaluation.metrics import check_pairs, map_pairs, pair_ranks
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.similarity import Metric, largest_similarities, paired_similarities, similarities

# Rows that count as found, queries whose results are compared, and draws of the bootstrap.
_TOP, _MAX_COMPARED, _NUM_DRAWS = 10, 2000, 1000
_QUANTILES = (0.025, 0.975)
# Similarities nearer than this share of their largest value are equal: they are summed in different orders.
_SLACK = 1e-6
_BLOCK_NUMBERS = 2**24


class Interval(NamedTuple):
    """A mean over queries with its 95 % bootstrap interval over queries."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class SearchScores(NamedTuple):
    """How well queries find what they should.

    Attributes:
        recall1: share of queries whose true partner is the first result.
        recall5: share with the partner among the first 5.
        recall10: share with the partner among the first 10.
        ndcg10: nDCG@10 where the partner alone is relevant: the mean of ``1 / log2(1 + rank)``, 0 beyond rank 10.
        overlap10: share of the 10 results of a search without a map that are among the 10 found. The partner itself
            is left out of both.
    """

    recall1: Interval
    recall5: Interval
    recall10: Interval
    ndcg10: Interval
    overlap10: Interval


def evaluate_search(linear_map: LinearMap, x: Any, y: Any, *, seed: int = 0) -> SearchScores:
    """Let mapped rows of the source search rows of the target, by cosine in the centred frame.

    For the other direction pass ``invert(linear_map)``, ``y`` and ``x``.

    Args:
        linear_map: one `LinearMap`.
        x: ``[n, d_x]`` raw rows of the source, the queries.
        y: ``[n, d_y]`` raw rows of the target, the index; row i is the true partner of row i of ``x``.
        seed: seed of the bootstrap.

    Raises:
        InputError: wrong class, shape or dtype, different numbers of rows, or ``x`` and ``y`` swapped.

    Example:
        >>> import jax.numpy as jnp
        >>> from mv2v_jax import Centering
        >>> centering = Centering(mean=jnp.zeros(2), scale=jnp.ones(()))
        >>> identity = LinearMap(W=jnp.eye(2), source=centering, target=centering)
        >>> str(evaluate_search(identity, jnp.eye(2), jnp.eye(2)).recall1)
        '1.000 (1.000 to 1.000)'
    """
    mapped, native = map_pairs(linear_map, *check_pairs(linear_map, x, y))
    ranks = np.asarray(pair_ranks(mapped, native))
    return score_search(ranks, overlaps(np.asarray(mapped), np.asarray(native), np.asarray(native)), seed)


def score_search(ranks: np.ndarray, overlap: np.ndarray, seed: int = 0) -> SearchScores:
    """The scores of queries from the ranks of their partners ``[q]`` and the overlaps of some of them."""
    gains = np.where(ranks <= _TOP, 1 / np.log2(1 + ranks), 0)
    rng = np.random.default_rng(seed)
    return SearchScores(*(_bootstrap(values, rng) for values in (*(ranks <= k for k in (1, 5, _TOP)), gains, overlap)))


def _bootstrap(values: np.ndarray, rng: np.random.Generator) -> Interval:
    values = values.astype(np.float64)
    drawn = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(_NUM_DRAWS)]
    low, high = np.quantile(drawn, _QUANTILES)
    return Interval(float(values.mean()), float(low), float(high))


def partner_ranks(
    queries: np.ndarray, partners: np.ndarray, index: Iterable[np.ndarray], metric: Metric = "cosine"
) -> np.ndarray:
    """Rank of each query's partner among all rows of an index: ``[q]``, from 1; tied rows get their mean rank.

    Args:
        queries: ``[q, d]``.
        partners: ``[q, d]``, the partners as they are in the index.
        index: blocks of the rows of the index, the partners among them.
        metric: how the index compares rows.
    """
    own = paired_similarities(queries, partners, metric)[:, None]
    slack = _SLACK * largest_similarities(queries, partners, metric)[:, None]
    closer = np.zeros(len(queries), np.int64)
    tied = np.zeros(len(queries), np.int64)
    for block in index:
        step = max(1, _BLOCK_NUMBERS // max(1, len(block)))
        for start in range(0, len(queries), step):
            chosen = slice(start, start + step)
            found = similarities(queries[chosen], block, metric)
            closer[chosen] += (found > own[chosen] + slack[chosen]).sum(axis=1)
            tied[chosen] += (np.abs(found - own[chosen]) <= slack[chosen]).sum(axis=1)
    return 1 + closer + (np.maximum(tied, 1) - 1) / 2


def overlaps(
    queries: np.ndarray,
    index: np.ndarray,
    native: np.ndarray,
    metric: Metric = "cosine",
    native_index: np.ndarray | None = None,
) -> np.ndarray:
    """Share of the first 10 results of native queries that mapped ones find among their first 10: ``[min(n, 2000)]``.

    Args:
        queries: ``[n, d]``; row i of the index is the partner of query i, which neither search may find. At most 2,000
            of them search, spread evenly. A single one has no results to compare, and a share of 0.
        index: ``[n, d]``, what they search.
        native: ``[n, d']``, the same queries for a search without a map.
        metric: how both indexes compare rows.
        native_index: ``[n, d']``, what these search; ``native`` by default.
    """
    n = len(queries)
    chosen = np.linspace(0, n - 1, min(n, _MAX_COMPARED)).astype(np.int64)
    if n < 2:
        return np.zeros(len(chosen))
    k = min(_TOP, n - 1)
    sides = ((queries, index), (native, native if native_index is None else native_index))
    shares = []
    for block in np.array_split(chosen, -(-len(chosen) * n // _BLOCK_NUMBERS)):
        found, wanted = (_top(similarities(part[block], rows, metric), block, k) for part, rows in sides)
        shares.append((found[:, :, None] == wanted[:, None, :]).any(axis=1).mean(axis=1))
    return np.concatenate(shares)


def _top(found: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """The ``k`` best rows of each query, without its ``own``."""
    found[np.arange(len(found)), own] = -np.inf
    return np.argpartition(-found, k - 1, axis=1)[:, :k]
