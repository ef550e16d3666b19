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
    (drawn,) = np.asarray(draw_rows(jax.random.key(1), (x,), (num_rows,), order_rows(jax.random.key(2), x)))
    assert len(drawn) == min(num_rows, 6)
    assert len(np.unique(drawn[:, 0])) == len(drawn)
    np.testing.assert_array_equal(drawn[:, 1], drawn[:, 0] + 1)
    if num_rows >= 6:
        np.testing.assert_array_equal(drawn, x)


@pytest.mark.parametrize("seed", range(5))
def test_zero_rows_are_drawn_last(rng, seed):
    x = jnp.asarray(rng.normal(size=(9, 2))).at[jnp.array([0, 4, 5])].set(0)
    (drawn,) = draw_rows(jax.random.key(seed), (x,), (8,), order_rows(jax.random.key(2), x))
    np.testing.assert_array_equal(present_rows(drawn), [True] * 6 + [False] * 2)


def test_every_row_is_drawn_as_often_as_any_other(rng):
    x = jnp.asarray(rng.normal(size=(10, 1)))
    spaces = (x, x[::-1])
    orders = order_rows(jax.random.key(3), *spaces)
    draws = jax.vmap(lambda key: draw_rows(key, spaces, (4, 4), orders))(jax.random.split(jax.random.key(4), 2_000))
    for drawn in draws:
        counts = (np.asarray(drawn)[..., None, 0] == np.asarray(x)[None, None, :, 0]).sum((0, 1))
        assert counts.sum() == 8_000
        assert stats.chisquare(counts).pvalue > 1e-3


def test_two_spaces_are_shuffled_and_drawn_independently():
    """Of two spaces of equal rows, the first drawn one is the same as often as chance makes it."""
    x = jnp.arange(1.0, 9.0)[:, None]

    def first_rows(key):
        orders = order_rows(key, x, x)
        return jnp.stack([drawn[0, 0] for drawn in draw_rows(jax.random.fold_in(key, 0), (x, x), (3, 3), orders)])

    first_x, first_y = np.asarray(jax.vmap(first_rows)(jax.random.split(jax.random.key(5), 4_000))).T
    table = np.histogram2d(first_x, first_y, bins=8)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3
