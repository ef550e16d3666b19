"""Bad input raises one sentence that names the argument, the expected value and the value found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config, with_settings

from mv2v_jax import Config, align
from mv2v_jax.config import PRESETS, check_config
from mv2v_jax.data.checks import check_finite, check_fitting_rows, check_key
from mv2v_jax.errors import InputError

CONFIG = small_config(anchors_num_clusters=5)


def rows(num_rows=9, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(num_rows, 3)).astype(dtype)


def with_bad(value, *indices):
    bad = rows()
    bad[list(indices), 1] = value
    return bad


BAD_ROWS = {
    "nan": (with_bad(np.nan, 4, 6), r"must be finite, found NaN or infinity in 2 rows, first in row 4"),
    "infinity": (with_bad(-np.inf, 7), r"must be finite, found NaN or infinity in 1 rows, first in row 7"),
    "one-dimensional": (rows()[0], r"must be two-dimensional.*found shape \[3\]"),
    "three-dimensional": (rows()[None], r"must be two-dimensional.*found shape \[1, 9, 3\]"),
    "integers": (rows().astype(np.int32), r"must hold floating-point embeddings, found dtype int32"),
    "booleans": (rows() > 0, r"must hold floating-point embeddings, found dtype bool"),
    "objects": (rows().astype(object), r"must hold floating-point embeddings, found dtype object"),
    "complex": (rows().astype(np.complex64), r"must hold floating-point embeddings, found dtype complex64"),
    "too few": (rows(4), r"must have at least 5 rows, found 4"),
    "empty": (rows(0), r"must have at least 5 rows, found 0"),
    "no columns": (rows()[:, :0], r"must have at least one column, found shape \[9, 0\]"),
    "too long": (
        rows() * np.float32(1e20),
        r"must hold rows of lengths from .* to 5e\+18, .* first in row 0; multiply .*",
    ),
    "too short": (rows() * np.float32(1e-20), r"must hold rows of lengths from 6e-13 to .*, found a mean length .*"),
    "all equal": (np.ones((9, 3), np.float32), r"must hold different rows, found 9 equal ones \(zero rows aside\)"),
    "equal but for zeros": (
        np.eye(9, 3, dtype=np.float32) * np.float32([1, 0, 0]),
        r"must hold different rows, found 9 equal ones \(zero rows aside\)",
    ),
    "all zero": (np.zeros((9, 3), np.float32), r"must hold different rows, found 9 equal ones \(zero rows aside\)"),
}


@pytest.mark.parametrize("argument", ["x", "y"])
@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named(case, argument):
    bad, message = BAD_ROWS[case]
    arguments = {"x": rows(), "y": rows(8), argument: bad}
    with pytest.raises(InputError, match=f"^{argument} {message}$") as error:
        align(jax.random.key(0), arguments["x"], arguments["y"], CONFIG)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("place", [jnp.asarray, np.asarray])
def test_every_floating_dtype_is_looked_at(dtype, place):
    good = place(jnp.asarray(rows(), dtype))
    assert check_fitting_rows(good, "x", CONFIG).dtype == dtype
    with pytest.raises(InputError, match="1 rows, first in row 4"):
        check_fitting_rows(place(jnp.asarray(with_bad(np.nan, 4), dtype)), "x", CONFIG)


def test_lists_become_arrays():
    assert check_fitting_rows(rows().tolist(), "x", CONFIG).shape == (9, 3)


def test_zero_rows_and_duplicates_are_legal():
    legal = rows()
    legal[:4] = 0
    legal[5] = legal[6]
    np.testing.assert_array_equal(check_fitting_rows(legal, "x", CONFIG), legal)


def test_rows_are_looked_at_block_by_block(monkeypatch):
    monkeypatch.setattr("mv2v_jax.data.scan._BLOCK_BYTES", 24)
    check_finite(rows(), "x")
    with pytest.raises(InputError, match="2 rows, first in row 6"):
        check_finite(with_bad(np.nan, 6, 8), "x")
    last_differs = np.ones((5, 2))
    last_differs[4] = 2
    check_fitting_rows(last_differs, "x", CONFIG)
    with pytest.raises(InputError, match="5 equal ones"):
        check_fitting_rows(np.ones((5, 2)), "x", CONFIG)


def test_shapes_are_checked_under_a_transformation_and_values_are_not():
    check = jax.vmap(lambda x: check_fitting_rows(x, "x", CONFIG))
    assert check(jnp.full((2, 9, 3), jnp.nan)).shape == (2, 9, 3)
    with pytest.raises(InputError, match="x must have at least 5 rows, found 4"):
        check(jnp.zeros((2, 4, 3)))


def test_concrete_rows_are_checked_inside_a_transformation():
    """A function under jit may close over concrete rows."""
    bad, good = jnp.asarray(with_bad(np.nan, 4)), jnp.asarray(rows())
    with pytest.raises(InputError, match="first in row 4"):
        jax.jit(lambda: check_fitting_rows(bad, "x", CONFIG))()
    np.testing.assert_array_equal(jax.jit(lambda: check_fitting_rows(good, "x", CONFIG))(), good)


BAD_CONFIGS = {
    "anchors.num_clusters": (1, "must be a whole number of at least 2, found 1"),
    "anchors.num_sets": (0, "must be a whole number of at least 1, found 0"),
    "anchors.num_starts": (-3, "must be a whole number of at least 1, found -3"),
    "anchors.rows": (4, r"must be at least anchors\.num_clusters \(5\), found 4"),
    "published.match_steps": (-1, "must be a whole number of at least 0, found -1"),
    "published.project": (1, "must be true or false, found 1"),
    "published.smoothing": (1.5, "must be a number from 0.0 to 1.0, found 1.5"),
    "annealing.steps": (2.5, "must be a whole number of at least 0, found 2.5"),
    "annealing.num_neighbors": (0, "must be a whole number of at least 1, found 0"),
    "annealing.power": (-0.1, "must be a number from 0.0 to 8.0, found -0.1"),
    "settling.min_neighbors": (True, "must be a whole number of at least 1, found True"),
    "settling.ample_rows": (1.5, "must be a whole number of at least 0, found 1.5"),
    "settling.whole_rows": (1, "must be a whole number of at least 2, found 1"),
    "polishing.batch_rows": (1, "must be a whole number of at least 2, found 1"),
    "polishing.learning_rate": (2.0, "must be a number from 0.0 to 1.0, found 2.0"),
    "whitening.reliability_power": (float("nan"), "must be a number from 0.0 to 8.0, found nan"),
    "whitening.power": (0.6, "must be a number from 0.0 to 0.5, found 0.6"),
    "held_out_rows": (-1, "must be a whole number of at least 0, found -1"),
}


@pytest.mark.parametrize("field", BAD_CONFIGS)
def test_bad_configs_are_named(field):
    value, message = BAD_CONFIGS[field]
    bad = with_settings(CONFIG, **{field.replace(".", "_"): value})
    with pytest.raises(InputError, match=f"^{field} {message}$"):
        check_config(bad)
    with pytest.raises(InputError, match=f"^{field} "):
        align(jax.random.key(0), rows(), rows(), bad)


def test_good_configs_pass():
    for preset in PRESETS:
        check_config(Config.preset(preset))
    check_config(CONFIG)
    check_config(with_settings(CONFIG, published_smoothing=jnp.array(0.9)))


@pytest.mark.parametrize("value", ["0.5", None])
def test_a_float_that_is_no_number_is_named(value):
    with pytest.raises(InputError, match=r"^published\.smoothing must be"):
        check_config(with_settings(CONFIG, published_smoothing=value))


KEYS = {
    "rows": (rows(), r"found an array of float\d+\[\d+, \d+\]; the key comes before x and y$"),
    "a seed": (0, "found 0; the key comes before x and y"),
    "several": (jax.random.split(jax.random.key(0)), r"found an array of key.*\[2\]; use jax.vmap over several keys"),
    "floats": (jnp.zeros(2), r"found an array of float32\[2\]"),
}


@pytest.mark.parametrize("case", KEYS)
def test_what_is_no_key_is_named(case):
    key, message = KEYS[case]
    with pytest.raises(InputError, match=r"(?s)^key must be one random key, such as jax\.random\.key\(0\), " + message):
        check_key(key)


def test_keys_of_both_kinds_pass():
    check_key(jax.random.key(0))
    check_key(jax.random.PRNGKey(0))
