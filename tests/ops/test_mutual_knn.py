"""Candidates in both directions against the whole n x m matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equations, rough_error, unit

from mv2v_jax.ops import mutual_knn
from mv2v_jax.ops.mutual_knn import find_candidates

both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def clouds(n, m, d=8, seed=0):
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(n, d))), unit(rng.normal(size=(m, d)))


def find(x, y, k, min_candidates=1):
    """Both directions: our candidates, all similarities in float64, and the largest possible error of each."""

    def both(x, y):
        found = find_candidates(x, y, num_neighbors=k, min_candidates=min_candidates)
        return found.all_of_x(found.x_to_y), found.y_to_x

    sides = jax.jit(both)(x, y)
    similarity, error = np.float64(x) @ np.float64(y).T, rough_error(x, y)
    for side in sides:
        assert (side.similarity.dtype, side.index.dtype) == (x.dtype, np.int32)
        assert side.similarity.shape == side.index.shape
    return (sides[0], similarity, error), (sides[1], similarity.T, error.T)


def at(matrix, index):
    return np.take_along_axis(matrix, np.asarray(index), axis=1)


@both_dtypes
@pytest.mark.parametrize("min_candidates", [1, 5, 12])
@pytest.mark.parametrize("shape", [(1, 9, 3), (9, 1, 3), (7, 3, 5), (300, 1_250, 4), (61, 53, 53)])
def test_few_rows_are_searched_exactly(shape, min_candidates, dtype):
    n, m, k = shape
    with jax.enable_x64(dtype == np.float64):
        x, y = (jnp.asarray(rows, dtype) for rows in clouds(n, m))
        for side, similarity, _ in find(x, y, k, min_candidates):
            order = np.argsort(-similarity, axis=1)[:, : max(k, min_candidates)]
            np.testing.assert_array_equal(side.index, order)
            np.testing.assert_allclose(side.similarity, at(similarity, order), atol=1e-6)


# Groups need at least two rows per group on both sides; more neighbours need more groups.
@pytest.mark.parametrize(
    ("n", "m", "k", "exact"), [(511, 640, 3, True), (640, 511, 3, True), (512, 513, 3, False), (640, 650, 21, True)]
)
def test_either_side_decides_what_is_few(n, m, k, exact):
    with jax.enable_x64(True):
        for side, similarity, _ in find(*map(jnp.asarray, clouds(n, m)), k, 10):
            if exact:
                np.testing.assert_array_equal(side.index, np.argsort(-similarity, axis=1)[:, : max(k, 10)])
            else:
                assert 256 <= side.index.shape[1] <= similarity.shape[1] / 2 + 1


# Sizes that no number of groups or blocks divides; the last block of the second is mostly padding.
many_rows = pytest.mark.parametrize(("n", "m"), [(1_030, 1_300), (2_049, 777)])


@many_rows
@both_dtypes
def test_of_many_rows_the_nearest_is_found_and_few_others_are_missed(n, m, dtype):
    with jax.enable_x64(dtype == np.float64):
        x, y = (jnp.asarray(rows, dtype) for rows in clouds(n, m))
        for side, similarity, error in find(x, y, 10):
            index = np.asarray(side.index)
            assert index.shape[1] >= 256
            assert all(len(set(row)) == index.shape[1] for row in index)
            # At most three bits of a float32 or float64 number hold the place.
            rounding = at(error, index) + 8 * np.finfo(dtype).eps * np.abs(side.similarity)
            is_empty = np.asarray(side.similarity) == -2
            assert ((np.abs(side.similarity - at(similarity, index)) <= rounding) | is_empty).all()
            assert is_empty.mean() < 0.05
            best = np.asarray(side.similarity).argmax(axis=1)[:, None]
            lost = similarity.max(axis=1) - at(similarity, np.take_along_axis(index, best, 1))[:, 0]
            if dtype == np.float64:
                np.testing.assert_array_equal(at(index, best)[:, 0], similarity.argmax(axis=1))
            # Rounding puts another row first only where both are about as near.
            nearest = similarity.argmax(axis=1)[:, None]
            assert (lost <= (at(error, nearest) + at(error, at(index, best)))[:, 0]).all()
            assert lost.mean() < 2e-4
            wanted = np.argsort(-similarity, axis=1)[:, :10]
            recall = np.mean([len(set(ours) & set(theirs)) for ours, theirs in zip(index, wanted, strict=True)]) / 10
            assert 0.975 < recall < 1


@many_rows
@both_dtypes
def test_every_candidate_is_the_nearest_of_a_group_and_groups_have_every_row_once(n, m, dtype):
    """The groups are read off the result: a column names rows of one group, whatever the query."""
    with jax.enable_x64(dtype == np.float64):
        x, y = (jnp.asarray(rows, dtype) for rows in clouds(n, m, seed=2))
        for side, similarity, error in find(x, y, 10):
            index = np.asarray(side.index)
            groups = [np.unique(column) for column in index.T]
            np.testing.assert_array_equal(np.sort(np.concatenate(groups)), np.arange(similarity.shape[1]))
            assert max(map(len, groups)) <= similarity.shape[1] // 256
            for column, own, group in zip(index.T, np.asarray(side.similarity).T, groups, strict=True):
                nearest = similarity[:, group].max(axis=1)
                slack = 2 * error[:, group].max(axis=1)
                # Padding of a block consists of zero rows, which are nearer than rows at an obtuse angle.
                is_empty = (nearest <= slack) & (own == -2)
                assert ((nearest - at(similarity, column[:, None])[:, 0] <= slack) | is_empty).all()


def test_similar_rows_side_by_side_are_found(monkeypatch):
    """Files are often sorted: near rows must not end in one group."""
    monkeypatch.setattr(mutual_knn, "_MIN_GROUPS", 64)
    angle = np.linspace(0, np.pi / 2, 1_024)
    with jax.enable_x64(True):  # Neighbours are closer together than the rounding of a float32 product.
        curve = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], 1))
        for side, similarity, _ in find(curve, curve, 4):
            found = -np.sort(-at(similarity, side.index), axis=1)[:, :4]
            np.testing.assert_allclose(found, -np.sort(-similarity, axis=1)[:, :4], atol=1e-9)


@both_dtypes
def test_of_a_file_sorted_by_topic_all_of_the_topic_is_found(dtype):
    rng = np.random.default_rng(3)
    topics = np.repeat(rng.normal(size=(80, 16)), 8, axis=0)
    with jax.enable_x64(dtype == np.float64):
        x, y = (jnp.asarray(unit(topics + 0.2 * rng.normal(size=topics.shape)), dtype) for _ in range(2))
        for side, _, _ in find(x, y, 8):
            assert 256 <= side.index.shape[1] < 640
            for row, found in enumerate(np.asarray(side.index)):
                first = row // 8 * 8
                assert set(range(first, first + 8)) <= set(found)


@both_dtypes
@pytest.mark.parametrize("block_entries", [1_300, 30_000])
def test_the_size_of_a_block_changes_nothing_for_rows_of_x(monkeypatch, block_entries, dtype):
    with jax.enable_x64(dtype == np.float64):
        x, y = (jnp.asarray(rows, dtype) for rows in clouds(517, 1_300, seed=1))
        jax.clear_caches()
        (whole, _, _), _ = find(x, y, 3)
        monkeypatch.setattr("mv2v_jax.ops.knn.BLOCK_ENTRIES", block_entries)
        jax.clear_caches()
        (blocked, _, _), (back, similarity, error) = find(x, y, 3)
        np.testing.assert_array_equal(blocked.index, whole.index)
        np.testing.assert_allclose(blocked.similarity, whole.similarity, atol=1e-6)
        lost = similarity.max(axis=1) - at(similarity, back.index).max(axis=1)
        assert (lost <= 2 * error.max(axis=1)).all()
        assert lost.mean() < 1e-5
        if dtype == np.float64:
            assert (np.asarray(back.index) == similarity.argmax(axis=1)[:, None]).any(axis=1).all()


def test_zero_rows_have_candidates_that_exist():
    x, y = np.zeros((700, 4), np.float32), clouds(900, 4, d=4)[0].astype(np.float32)
    for side, similarity, _ in find(jnp.asarray(x), jnp.asarray(y), 5):
        assert np.isfinite(side.similarity).all()
        assert (np.asarray(side.index) < similarity.shape[1]).all()
        assert (np.asarray(side.index) >= 0).all()


@pytest.mark.parametrize("first", [0, 400, 577])  # Zero rows of the data, in the middle too, and padding.
@both_dtypes
def test_zero_rows_pass_their_similarity_to_no_other_row(dtype, first):
    x, y = (np.insert(rows, [first] * 63, 0, axis=0) for rows in clouds(577, 577, seed=4))
    with jax.enable_x64(dtype == np.float64):
        found = find(jnp.asarray(x, dtype), jnp.asarray(y, dtype), 5)
        for (side, similarity, error), rows in zip(found, (x, y), strict=True):
            rounding = at(error, side.index) + 8 * np.finfo(dtype).eps * np.abs(side.similarity)
            is_empty = np.asarray(side.similarity) == -2
            exact = np.abs(side.similarity - at(similarity, side.index)) <= rounding + 1e-30
            assert (exact | is_empty).all()
            # A row with a length has no such group where one of its members is nearer than a right angle.
            num_groups = side.index.shape[1]
            columns = np.pad(similarity, ((0, 0), (0, -similarity.shape[1] % num_groups)), constant_values=-1)
            nearest = columns.reshape(len(columns), -1, num_groups).max(axis=1)
            assert not (is_empty & (nearest > 2 * error.max()))[rows.any(axis=1)].any()
            assert is_empty.mean() < 0.5


def test_no_array_pairs_all_rows_of_both_spaces():
    x, y = (jnp.zeros((rows, 4)) for rows in (1_200, 1_100))
    jaxpr = jax.make_jaxpr(lambda x, y: find_candidates(x, y, num_neighbors=3, min_candidates=10).y_to_x)(x, y).jaxpr
    sizes = [int(np.prod(v.aval.shape)) for e in equations(jaxpr) for v in e.outvars]
    assert 1_200 * 4 < max(sizes) < 1_200 * 1_100 / 2
