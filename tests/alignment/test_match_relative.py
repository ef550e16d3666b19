"""Relative representations against NumPy, and partners found where the spaces are rotations of each other."""

import jax.numpy as jnp
import numpy as np
from helpers import make_spaces, semi_orthogonal, unit

from mv2v_jax.alignment.match_relative import match_relative


def test_a_rotated_space_finds_its_own_rows(rng):
    x, anchors = rng.normal(size=(20, 4)).astype(np.float32), rng.normal(size=(9, 4)).astype(np.float32)
    turn = semi_orthogonal(rng, 4, 7).astype(np.float32)
    order = rng.permutation(20)
    y = (x @ turn)[order]
    found = match_relative(jnp.asarray(x), jnp.asarray(y), make_spaces(anchors, anchors @ turn), num_neighbors=1)
    np.testing.assert_allclose(found.rows, x @ turn, atol=1e-5)
    np.testing.assert_allclose(found.similarity, 1, atol=1e-5)


def test_equals_the_whole_matrix(rng):
    x, y = rng.normal(size=(15, 4)), rng.normal(size=(13, 6))
    anchors_x, anchors_y = rng.normal(size=(5, 4)), rng.normal(size=(5, 6))
    similarity = unit(unit(x) @ unit(anchors_x).T) @ unit(unit(y) @ unit(anchors_y).T).T
    nearest = np.argsort(-similarity, axis=1)[:, :3]
    anchors = make_spaces(anchors_x, anchors_y, jnp.float32)
    found = match_relative(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), anchors, num_neighbors=3)
    np.testing.assert_allclose(found.rows, y[nearest].mean(1), atol=1e-5)
    np.testing.assert_allclose(found.similarity, np.take_along_axis(similarity, nearest, 1).mean(1), atol=1e-5)


def test_zero_rows_are_finite():
    rows = jnp.zeros((3, 2))
    assert np.isfinite(match_relative(rows, rows, make_spaces(rows, rows), num_neighbors=2).rows).all()
