"""JAX settings that a host program may have made: everything works under them, or is refused by one sentence."""

import contextlib

import jax
import numpy as np
import pytest
from helpers import planted_clouds, small_config

import mv2v_jax
from mv2v_jax import Centering, LinearMap

ROWS = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
CENTERING = Centering(mean=np.full(4, 0.1, np.float32), scale=np.float32(1))
TURN = LinearMap(W=np.eye(4, dtype=np.float32)[::-1].copy(), source=CENTERING, target=CENTERING)


@contextlib.contextmanager
def option(name, value):
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


SETTINGS = {
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: option("jax_debug_infs", True),
    "x64": lambda: option("jax_enable_x64", True),
    "disable_jit": lambda: jax.disable_jit(),
    "standard promotion": lambda: jax.numpy_dtype_promotion("standard"),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion raises": lambda: jax.numpy_rank_promotion("raise"),
    "rank promotion warns": lambda: jax.numpy_rank_promotion("warn"),
    "leak checker": lambda: jax.checking_leaks(),
    "highest precision": lambda: jax.default_matmul_precision("highest"),
    "unsafe keys": lambda: option("jax_default_prng_impl", "rbg"),
}


FAST = ("x64",)


@pytest.mark.parametrize("dtype", [pytest.param(np.float16, marks=pytest.mark.slow), np.float64])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in SETTINGS]
)
def test_maps_are_applied_and_judged(name, dtype):
    rows = ROWS.astype(dtype)
    expected = mv2v_jax.apply(TURN, ROWS)
    with SETTINGS[name]():
        found = mv2v_jax.apply(TURN, rows)
        scores = mv2v_jax.evaluate(TURN, rows, ROWS[:, ::-1])
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=2e-3)
    assert float(scores.top1) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "disable_jit"])
def test_fits_are_the_same(name):
    planted = planted_clouds(6, 5, num_x=61, num_y=53, groups=6, seed=10)
    config = small_config(components_num_runs=0)

    def fit(y):
        return np.asarray(mv2v_jax.align(jax.random.key(0), planted.x, y, config).map.W, np.float64)

    expected = fit(planted.y)
    with SETTINGS[name]():
        # Rows of two dtypes, as where one encoder writes float64.
        found = fit(planted.y.astype(np.float64) if name == "x64" else planted.y)
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    # In float64, and by other random numbers, it is another fit.
    if name not in ("x64", "unsafe keys"):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def compile_fit(config):
    """One compiled program of a whole fit, and arguments for it on the device."""
    planted = planted_clouds(6, 5, num_x=61, num_y=53, groups=6, seed=10)
    arguments = jax.device_put((jax.random.key(0), planted.x, planted.y))
    return jax.jit(lambda key, x, y: mv2v_jax.align(key, x, y, config)), arguments


@pytest.mark.slow
def test_a_compiled_fit_moves_nothing_between_host_and_device():
    fit, arguments = compile_fit(small_config(components_num_runs=0))
    compiled = fit.lower(*arguments).compile()
    with jax.transfer_guard("disallow"):
        # Would be refused: a number of the host is an argument.
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            jax.jit(lambda x: x + 1)(np.ones(2))
        found = jax.block_until_ready(compiled(*arguments))
    expected = fit(*arguments)
    np.testing.assert_array_equal(found.map.W, expected.map.W)


@pytest.mark.slow
def test_a_fit_leaks_no_tracer():
    fit, arguments = compile_fit(small_config(components_num_runs=0, settling_steps=2))
    with jax.checking_leaks():
        found = fit(*arguments)
    assert np.isfinite(found.map.W).all()


@pytest.mark.slow
def test_an_old_style_key_fits_as_a_new_one():
    planted = planted_clouds(6, 5, num_x=61, num_y=53, groups=6, seed=10)
    config = small_config(components_num_runs=0)
    keys = jax.random.key(3), jax.random.PRNGKey(3)
    old, new = (mv2v_jax.align(key, planted.x, planted.y, config).map.W for key in keys)
    np.testing.assert_allclose(old, new, atol=1e-6)
