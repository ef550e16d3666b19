"""Regions that a map has matched are told from those that it has not, without a label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2v_jax.alignment.regions import region_closeness, vote_of_regions
from mv2v_jax.ops.masked import unit_rows

NUM_BLOBS, DIMS = 8, 24


def two_clouds(seed, num_x=640, num_y=480, num_wrong=2):
    """Rows of the same blobs in random order; the first blobs of Y lie somewhere else. And the blobs of the rows."""
    rng = np.random.default_rng(seed)
    centers = np.linalg.qr(rng.normal(size=(DIMS, DIMS)))[0]
    elsewhere = centers[NUM_BLOBS:]

    def draw(num_rows, moved):
        blob = rng.integers(NUM_BLOBS, size=num_rows)
        rows = np.where((blob < moved)[:, None], elsewhere[blob], centers[blob])
        return unit_rows(jnp.asarray(rows + 0.1 * rng.normal(size=rows.shape), jnp.float32)), blob

    return *draw(num_x, 0), *draw(num_y, num_wrong)


@pytest.mark.parametrize("seed", range(3))
def test_wrong_regions_are_less_close(seed):
    x, blob_x, y, blob_y = two_clouds(seed)
    for closeness, blob in zip(region_closeness(x, y), (blob_x, blob_y), strict=True):
        assert np.asarray(closeness)[blob < 2].max() < np.asarray(closeness)[blob >= 2].min()


def test_all_regions_of_two_samples_of_one_cloud_are_about_as_close_as_their_own_rows():
    x, _, y, _ = two_clouds(0, num_y=640, num_wrong=0)
    for closeness in region_closeness(x, y):
        np.testing.assert_allclose(closeness, 1, atol=0.05)


def test_the_worst_regions_have_no_vote():
    x, blob_x, y, blob_y = two_clouds(0)
    for votes, blob in zip(vote_of_regions(x, y, 0.3), (blob_x, blob_y), strict=True):
        assert not np.asarray(votes)[blob < 2].any()
        assert 0.6 <= votes.mean() <= 0.75


def test_all_vote_where_none_are_left_out():
    x, _, y, _ = two_clouds(0)
    assert all(votes.all() for votes in vote_of_regions(x, y, 0.0))


def test_zero_rows_change_nothing():
    x, _, y, _ = two_clouds(0)
    longer = [jnp.concatenate([rows, jnp.zeros((40, DIMS), rows.dtype)]) for rows in (x, y)]
    for closeness, padded in zip(region_closeness(x, y), region_closeness(*longer), strict=True):
        assert not padded[-40:].any()
        # Nearness takes the nearest row of each of ten groups, and the zero rows are in the last group.
        np.testing.assert_allclose(padded[:-40], closeness, rtol=0.1)


@pytest.mark.parametrize("num_rows", [1, 2, 9])
def test_few_rows_have_finite_numbers(num_rows):
    x, _, y, _ = two_clouds(0)
    assert all(np.isfinite(found).all() for found in region_closeness(x[:num_rows], y[:3]))
    assert all(votes.any() for votes in jax.jit(vote_of_regions)(x[:num_rows], y[:3], 0.8))
