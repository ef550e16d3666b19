"""Random rows without replacement: distinct, equally often, zero rows last."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mv2v_jax.ops.masked import present_rows
from mv2v_jax.ops.sampling import draw_rows, order_rows


@pytest.mark.parametrize("num_rows", [1, 4, 6, 7])
def test_draws_distinct_rows_or_all_in_order(num_rows):
    x = jnp.arange(12.0).reshape(6, 2) + 1
    drawn = np.asarray(draw_rows(jax.random.key(1), x, num_rows, *order_rows(jax.random.key(2), x)))
    assert len(drawn) == min(num_rows, 6)
    assert len(np.unique(drawn[:, 0])) == len(drawn)
    np.testing.assert_array_equal(drawn[:, 1], drawn[:, 0] + 1)
    if num_rows >= 6:
        np.testing.assert_array_equal(drawn, x)


@pytest.mark.parametrize("seed", range(5))
def test_zero_rows_are_drawn_last(rng, seed):
    x = jnp.asarray(rng.normal(size=(9, 2))).at[jnp.array([0, 4, 5])].set(0)
    drawn = draw_rows(jax.random.key(seed), x, 8, *order_rows(jax.random.key(2), x))
    np.testing.assert_array_equal(present_rows(drawn), [True] * 6 + [False] * 2)


def test_every_row_is_drawn_as_often_as_any_other(rng):
    x = jnp.asarray(rng.normal(size=(10, 1)))
    (order,) = order_rows(jax.random.key(3), x)
    drawn = jax.vmap(lambda key: draw_rows(key, x, 4, order))(jax.random.split(jax.random.key(4), 2_000))
    counts = (np.asarray(drawn)[..., None, 0] == np.asarray(x)[None, None, :, 0]).sum((0, 1))
    assert counts.sum() == 8_000
    assert stats.chisquare(counts).pvalue > 1e-3
