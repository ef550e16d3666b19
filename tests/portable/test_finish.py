"""Mapped rows for an index: the lengths that dot product and squared distance need, and prefixes."""

import dataclasses

import numpy as np
import pytest

from mv2v_jax import InputError
from mv2v_jax.portable import load
from mv2v_jax.profiles.profile import profile_rows


@pytest.fixture
def unequal():
    """Rows whose lengths follow from their directions, nearly."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(600, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows * np.exp(2 * rows[:, :1] + 0.05 * rng.normal(size=(600, 1)))).astype(np.float32)


@pytest.fixture
def equal(unequal):
    return 3 * unequal / np.linalg.norm(unequal, axis=1, keepdims=True)


def with_target(portable_map, rows):
    return dataclasses.replace(portable_map, profiles=(None, profile_rows(rows)))


def lengths(rows):
    return np.linalg.norm(rows.astype(np.float64), axis=1)


def test_cosine_changes_nothing(portable_map, unequal, rows):
    expected = portable_map.apply(rows, frame="target")
    found = with_target(portable_map, unequal).apply(rows, frame="target", metric="cosine")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_rows_get_the_one_length_of_their_space(portable_map, equal, rows, metric):
    plain = portable_map.apply(rows, frame="target")
    found = with_target(portable_map, equal).apply(rows, frame="target", metric=metric)
    np.testing.assert_allclose(lengths(found), 3, rtol=1e-5)
    np.testing.assert_allclose(found / lengths(found)[:, None], plain / lengths(plain)[:, None], atol=1e-6)
    # Then all metrics find the same rows.
    query = rows[9, :6]
    by_distance = np.square(found - query).sum(axis=1).argsort()
    assert by_distance.tolist() == np.argsort(-(found @ query)).tolist()


def test_predicted_lengths_follow_the_directions(portable_map, unequal, rows):
    found = with_target(portable_map, unequal).apply(rows, frame="target", metric="dot")
    directions = found / lengths(found)[:, None]
    assert np.corrcoef(np.log(lengths(found)), directions[:, 0])[0, 1] > 0.9


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_prefixes(portable_map, equal, unequal, rows, dtype):
    rows = rows[6:].astype(dtype)
    centred = portable_map.apply(rows, dims=4)
    assert (centred.shape, centred.dtype) == ((len(rows), 4), dtype)
    np.testing.assert_allclose(lengths(centred), 1, atol=2e-3)
    target = portable_map.apply(rows, frame="target")
    # Vectors of one length are scaled to it again, others are cut.
    np.testing.assert_allclose(portable_map.apply(rows, frame="target", dims=4), target[:, :4], rtol=1e-5)
    scaled = with_target(portable_map, equal).apply(rows, frame="target", dims=4)
    np.testing.assert_allclose(lengths(scaled), 3, rtol=2e-3)
    restored = with_target(portable_map, unequal).apply(rows, frame="target", metric="l2")
    cut = with_target(portable_map, unequal).apply(rows, frame="target", metric="l2", dims=4)
    np.testing.assert_allclose(cut, restored[:, :4], atol=2e-3)
    np.testing.assert_allclose(portable_map.apply(rows[0], dims=4), centred[0], rtol=2e-3)


def test_the_way_back_takes_the_lengths_of_the_source(portable_map, equal, rows):
    back = dataclasses.replace(portable_map.invert(), profiles=(profile_rows(equal), None))
    found = back.apply(rows, frame="target", metric="dot", inverse=True)
    np.testing.assert_allclose(lengths(found), 3, rtol=1e-5)


def test_what_cannot_be_done_is_refused(portable_map, unequal, rows):
    with pytest.raises(InputError, match='metric must be "cosine", "dot" or "l2", found \'euclid\''):
        portable_map.apply(rows, metric="euclid")
    with pytest.raises(InputError, match="needs rows in the target frame, found the centred one"):
        portable_map.apply(rows, metric="dot")
    with pytest.raises(InputError, match="needs the lengths of the rows that are mapped to, found none in the map;"):
        portable_map.apply(rows, frame="target", metric="l2")
    # A map that was saved before there was a regression.
    profile = dataclasses.replace(profile_rows(unequal), length_weights=None, length_fit=None)
    with pytest.raises(InputError, match="found none in the map; fit it again from at least 200 rows"):
        dataclasses.replace(portable_map, profiles=(None, profile)).apply(rows, frame="target", metric="l2")
    for dims in (0, 6, -1, 2.0, True):
        with pytest.raises(InputError, match="dims must be from 1 to 5, fewer than the 6 numbers"):
            portable_map.apply(rows, dims=dims)


def test_files_keep_what_is_needed_and_damaged_ones_are_refused(portable_map, unequal, rows, tmp_path):
    remembers = with_target(portable_map, unequal)
    remembers.save(tmp_path / "map.safetensors")
    loaded = load(tmp_path / "map.safetensors")
    found = loaded.apply(rows, frame="target", metric="dot")
    np.testing.assert_array_equal(found, remembers.apply(rows, frame="target", metric="dot"))
    profile = remembers.profiles[1]
    for name, value in (
        ("length_weights", profile.length_weights[:5]),
        ("length_weights", np.full(6, np.nan, np.float32)),
        ("lengths", -profile.lengths),
        ("centres", profile.centres[:, :3]),
        ("nearness", np.arange(2)),
    ):
        damaged = dataclasses.replace(profile, **{name: value})
        dataclasses.replace(portable_map, profiles=(None, damaged)).save(tmp_path / "damaged.safetensors")
        with pytest.raises(InputError, match="must hold finite profiles of the dimensions of its means"):
            load(tmp_path / "damaged.safetensors")
