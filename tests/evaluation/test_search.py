"""Search scores against scikit-learn, SciPy and brute force."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import ndcg_score, top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors

from mv2v_jax import Centering, InputError, LinearMap, apply, evaluate_search, invert
from mv2v_jax.evaluation.index_search import evaluate_index
from mv2v_jax.evaluation.search import overlaps, partner_ranks, score_search
from mv2v_jax.portable import from_map
from mv2v_jax.similarity import similarities, unit


@pytest.fixture(scope="module")
def spaces():
    """A rotation that is right up to noise, and rows of both spaces of unequal lengths."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    latent = rng.normal(size=(120, 8)) * np.linspace(2, 0.3, 8)
    x = latent * rng.lognormal(0, 0.4, (120, 1)) + 0.4
    y = (latent + 0.6 * rng.normal(size=latent.shape)) @ turn * rng.lognormal(0, 0.4, (120, 1)) - 0.2
    source, target = (
        Centering(mean=jnp.asarray(rows.mean(axis=0), jnp.float32), scale=jnp.float32(3)) for rows in (x, y)
    )
    linear_map = LinearMap(W=jnp.asarray(turn, jnp.float32), source=source, target=target)
    return linear_map, x.astype(np.float32), y.astype(np.float32)


def test_recall_and_ndcg_are_those_of_scikit_learn(spaces):
    linear_map, x, y = spaces
    found = evaluate_search(linear_map, x, y)
    mapped, target = np.asarray(apply(linear_map, x)), unit(y - np.asarray(linear_map.target.mean))
    similarity = mapped @ target.T
    for k, interval in ((1, found.recall1), (5, found.recall5), (10, found.recall10)):
        expected = top_k_accuracy_score(np.arange(120), similarity, k=k, labels=np.arange(120))
        assert interval.value == pytest.approx(expected)
    assert found.ndcg10.value == pytest.approx(ndcg_score(np.eye(120), similarity, k=10), abs=1e-6)
    assert 0.05 < found.recall1.value < 0.95


def test_overlap_is_that_of_two_neighbour_searches(spaces):
    linear_map, x, y = spaces
    mapped, target = np.asarray(apply(linear_map, x)), unit(y - np.asarray(linear_map.target.mean))
    shares = []
    for i in range(120):
        others = np.delete(target, i, axis=0)
        search = NearestNeighbors(n_neighbors=10, metric="cosine").fit(others)
        lists = [set(search.kneighbors(row[None], return_distance=False)[0]) for row in (mapped[i], target[i])]
        shares.append(len(lists[0] & lists[1]) / 10)
    np.testing.assert_allclose(overlaps(mapped, target, target), shares)
    assert evaluate_search(linear_map, x, y).overlap10.value == pytest.approx(np.mean(shares))


def test_the_way_back_searches_the_source(spaces):
    linear_map, x, y = spaces
    back = evaluate_search(invert(linear_map), y, x)
    mapped, source = np.asarray(apply(invert(linear_map), y)), unit(x - np.asarray(linear_map.source.mean))
    assert back.recall1.value == pytest.approx(np.mean((mapped @ source.T).argmax(axis=1) == np.arange(120)))


def test_intervals_are_those_of_scipy():
    ranks = np.random.default_rng(1).geometric(0.3, size=400).astype(float)
    found = score_search(ranks, ranks / ranks.max()).recall1
    values = (ranks <= 1).astype(float)
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2))
    assert found.value == values.mean()
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.008)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_ranks_are_those_of_brute_force(spaces, metric):
    _, x, y = spaces
    queries, index = x[:30].astype(np.float64), np.concatenate([y[:30], y[:7], y]).astype(np.float64)
    expected = []
    for query, own in zip(queries, index[:30], strict=True):
        if metric == "l2":
            nearness, mine = -((index - query) ** 2).sum(axis=1), -((own - query) ** 2).sum()
        else:
            norm = (lambda a: np.linalg.norm(a, axis=-1)) if metric == "cosine" else (lambda a: 1)
            nearness, mine = index @ query / norm(index) / norm(query), own @ query / norm(own) / norm(query)
        tied = np.abs(nearness - mine) < 1e-9
        expected.append(1 + (~tied & (nearness > mine)).sum() + (tied.sum() - 1) / 2)
    found = partner_ranks(queries, index[:30], [index[:50], index[50:]], metric)
    np.testing.assert_allclose(found, expected)


def test_an_index_is_searched_in_both_ways(spaces):
    linear_map, x, y = spaces
    numbers = np.random.default_rng(3).permutation(120)[:40]
    found = evaluate_index(from_map(linear_map), x, y[numbers], numbers)
    raw = np.asarray(apply(invert(linear_map), y[numbers], frame="target"))
    ranks = partner_ranks(raw, x[numbers], [x])
    assert found.queries_mapped.recall5.value == pytest.approx(np.mean(ranks <= 5))
    moved = np.asarray(apply(linear_map, x, frame="target"))
    first = similarities(y[numbers], moved, "cosine").argmax(axis=1)
    assert found.index_moved.recall1.value == pytest.approx(np.mean(first == numbers))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [([0, 0], "each row once"), ([0, 120], "from 0 to 119, found 0 to 120"), ([0.0, 1.0], "whole numbers")],
)
def test_row_numbers_are_checked(spaces, numbers, message):
    linear_map, x, y = spaces
    with pytest.raises(InputError, match=message):
        evaluate_index(from_map(linear_map), x, y[:2], np.array(numbers))


def test_swapped_rows_and_a_single_pair(spaces):
    linear_map, x, y = spaces
    with pytest.raises(InputError, match="x must have 8 columns"):
        evaluate_search(linear_map, x[:, :7], y)
    assert evaluate_search(linear_map, x[:1], y[:1]).recall1 == (1, 1, 1)
