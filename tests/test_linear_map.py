"""`apply` and `invert`: both frames, lengths and prefixes, the way back, dtypes and errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, make_map, semi_orthogonal, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from mv2v_jax import InputError, apply, invert, profile_rows
from mv2v_jax.portable import from_map


def make(d_x, d_y, seed=0, num_rows=50):
    """A map between two spaces, one a rotation of the other, with rows of both: ``(map, x, y)``."""
    rng = np.random.default_rng(seed)
    W = semi_orthogonal(rng, d_x, d_y)
    mean_x, mean_y = 2 * rng.normal(size=d_x), 2 * rng.normal(size=d_y)
    centered = rng.normal(size=(num_rows, d_x))
    scale_y = 3.0
    linear_map = make_map(W, mean_x, mean_y, scale_x=1.7, scale_y=scale_y)
    x, y = centered + mean_x, scale_y * unit(unit(centered) @ W) + mean_y
    return linear_map, jnp.asarray(x, jnp.float32), y


@pytest.mark.parametrize(("d_x", "d_y"), [(5, 5), (6, 4), (4, 6)])
def test_centred_frame_is_unit_rows_without_the_mean(d_x, d_y):
    linear_map, x, y = make(d_x, d_y)
    np.testing.assert_allclose(apply(linear_map, x), unit(y - np.asarray(linear_map.target.mean)), atol=1e-5)


@pytest.mark.parametrize(("d_x", "d_y"), [(5, 5), (6, 4), (4, 6)])
def test_target_frame_compares_with_raw_rows(d_x, d_y):
    linear_map, x, y = make(d_x, d_y)
    raw = np.asarray(apply(linear_map, x, frame="target"))
    np.testing.assert_allclose(raw, y, atol=1e-4)
    # The target's mean is part of raw rows: without it raw cosines would be lower.
    cosines = unit(raw) @ unit(y).T
    np.testing.assert_allclose(np.diagonal(cosines), 1, atol=1e-5)


def test_inverting_a_square_map_comes_back():
    linear_map, x, _ = make(5, 5)
    there = apply(linear_map, x, frame="target")
    back = apply(invert(linear_map), there)
    np.testing.assert_allclose(back, unit(np.asarray(x) - np.asarray(linear_map.source.mean)), atol=1e-4)
    assert_trees_close(invert(invert(linear_map)), linear_map, atol=1e-5)


def test_inverting_into_more_dimensions_comes_back():
    linear_map, x, _ = make(4, 6)
    back = apply(invert(linear_map), apply(linear_map, x, frame="target"))
    np.testing.assert_allclose(back, unit(np.asarray(x) - np.asarray(linear_map.source.mean)), atol=1e-4)


def test_inverting_into_fewer_dimensions_projects():
    linear_map, x, _ = make(6, 4)
    W = np.asarray(linear_map.W)
    back = apply(invert(linear_map), apply(linear_map, x, frame="target"))
    centered = unit(np.asarray(x) - np.asarray(linear_map.source.mean))
    np.testing.assert_allclose(back, unit(centered @ W @ W.T), atol=1e-4)


@pytest.mark.parametrize(("d_x", "d_y"), [(5, 5), (6, 4), (4, 6)])
def test_a_map_that_is_not_orthogonal_compares_alike_in_both_directions(d_x, d_y):
    linear_map, x, y = make(d_x, d_y)
    skewed = linear_map.replace(W=linear_map.W @ jnp.diag(jnp.linspace(0.5, 3.0, d_y)))
    means = skewed.source.mean, skewed.target.mean
    centred_x, centred_y = (unit(np.asarray(a) - np.asarray(b)) for a, b in zip((x, y), means, strict=True))
    compared = centred_x @ np.asarray(skewed.W) @ centred_y.T
    there = apply(skewed, x)
    back = apply(invert(skewed), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(
        there @ centred_y.T, compared / np.linalg.norm(centred_x @ skewed.W, axis=1)[:, None], atol=1e-5
    )
    np.testing.assert_allclose(
        back @ centred_x.T, compared.T / np.linalg.norm(centred_y @ skewed.W.T, axis=1)[:, None], atol=1e-5
    )


def test_zero_rows():
    linear_map, x, _ = make(5, 4)
    x = x.at[3].set(0)
    np.testing.assert_array_equal(apply(linear_map, x)[3], 0)
    np.testing.assert_allclose(apply(linear_map, x, frame="target")[3], linear_map.target.mean, rtol=1e-6)


@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    frame=st.sampled_from(["centred", "target"]),
    num_rows=st.sampled_from([1, 50]),
)
def test_rows_keep_their_dtype(dtype, frame, num_rows):
    linear_map, x, _ = make(5, 4)
    x = x[:num_rows].astype(dtype)
    found = apply(linear_map, x, frame=frame)
    assert found.dtype == x.dtype
    assert found.shape == (num_rows, 4)
    # Computed in the map's precision: only the input and the output are rounded.
    exact = apply(linear_map, x.astype(jnp.float32), frame=frame)
    error = np.abs(np.float32(found) - np.float32(exact)).max() / np.abs(exact).max()
    assert error <= float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(3, 4), (4,), (2, 3, 5)])
def test_wrong_shapes_are_named(shape):
    linear_map, _, _ = make(5, 4)
    with pytest.raises(InputError, match=rf"x must .*found (shape \[)?{shape[-1] if len(shape) == 2 else shape[0]}"):
        apply(linear_map, jnp.zeros(shape))


def test_an_unknown_frame_is_named():
    linear_map, x, _ = make(5, 4)
    with pytest.raises(InputError, match=r"frame must be .*found 'raw'"):
        apply(linear_map, x, frame="raw")


@pytest.fixture(scope="module")
def remembering():
    """A map, rows of its source, and profiles of targets whose rows have one length, and several."""
    linear_map, x, y = make(5, 4, num_rows=400)
    several = y * np.exp(unit(y)[:, :1])
    return linear_map, x.at[3].set(0), {"one": profile_rows(2 * unit(y)), "several": profile_rows(several)}


@pytest.mark.parametrize("lengths", ["one", "several"])
@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("dims", [None, 3])
def test_lengths_and_prefixes_are_those_of_a_portable_map(remembering, lengths, metric, dims):
    linear_map, x, profiles = remembering
    choices = {"frame": "target", "metric": metric, "dims": dims}
    portable_map = dataclasses.replace(from_map(linear_map), profiles=(None, profiles[lengths]))
    expected = portable_map.apply(np.asarray(x), **choices)
    found = apply(linear_map, x, **choices, profile=profiles[lengths])
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)
    assert not np.allclose(found, apply(linear_map, x, frame="target", dims=dims), atol=0.1)
    np.testing.assert_allclose(apply(linear_map, x[0], **choices, profile=profiles[lengths]), found[0], rtol=1e-5)


def test_lengths_and_prefixes_in_other_precisions_under_jit(remembering):
    linear_map, x, profiles = remembering
    choices = {"frame": "target", "metric": "dot", "dims": 3, "profile": profiles["several"]}
    expected = apply(linear_map, x[:5], **choices)

    def compiled(linear_map, rows):
        return jax.jit(lambda linear_map, rows: apply(linear_map, rows, **choices))(linear_map, rows)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), linear_map)
        found = compiled(wide, np.asarray(x[:5], np.float64))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    half = compiled(linear_map, np.asarray(x[:5]).astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half), expected, atol=0.1)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"metric": "euclid"}, "metric must be .* found 'euclid'"),
        ({"metric": "dot"}, "needs rows in the target frame"),
        ({"metric": "dot", "frame": "target"}, "found none in the argument profile; make it by profile_rows from at"),
        ({"dims": 4}, "dims must be from 1 to 3, fewer than the 4 numbers"),
        ({"profile": np.ones((3, 4))}, "profile must be what profile_rows returns, found ndarray"),
        ({"profile": profile_rows(np.eye(5).repeat(40, axis=0))}, "of the target, of 4 dimensions, found 5"),
    ],
)
def test_lengths_and_prefixes_that_cannot_be(choices, message):
    linear_map, x, _ = make(5, 4)
    with pytest.raises(InputError, match=message):
        apply(linear_map, x, **choices)
