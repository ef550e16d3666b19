"""Annealed refinement: the strong directions of the cross-covariance decide first, the weak ones join as they firm up.

Plain refinement cannot leave a poor start: its matches are mostly wrong, and a rotation gives the wrong directions as
much say as the right ones. Here rows are compared in the singular directions of the running cross-covariance, each
weighted by a power of its singular value; the power falls to zero, where the weighting is a rotation. Every step sees
random rows of both spaces, at most half of them (the stochastic dictionary of VecMap, Artetxe et al., ACL 2018), so
that no wrong match can confirm itself step after step. Matches are by CSLS, in both directions.
"""

import jax
import jax.numpy as jnp

from mv2v_jax.csls import match_csls
from mv2v_jax.preprocess import draw_rows, unit_rows
from mv2v_jax.refine import Refined
from mv2v_jax.types import Config

# Share of the steps after which the power is zero; the rest settle the rotation.
_ANNEALED_SHARE = 0.7
# The cross-covariance is averaged over steps, with a memory that grows as the matches become right.
_FIRST_MOMENTUM, _LAST_MOMENTUM = 0.5, 0.9


def refine_annealed(
    key: jax.Array, x: jax.Array, y: jax.Array, cross: jax.Array, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """Match random rows of both spaces again and again, with spectral weights annealed to a rotation.

    Args:
        key: random key; step ``i`` depends on ``fold_in(key, i)`` alone.
        x: ``[n, d_x]`` centred unit rows.
        y: ``[m, d_y]`` centred unit rows.
        cross: ``[d_x, d_y]``, a cross-covariance or a map to start from.
        config: uses ``anneal_*`` and ``spectral_power``.
        steps: ``[t]`` numbers of the steps to take; all of ``config.anneal_steps`` by default.

    Returns:
        `Refined`: the running cross-covariance, and the mean CSLS of the rows with their best matches.
    """
    rows_x, rows_y = (min(config.anneal_rows, -(-rows.shape[0] // 2)) for rows in (x, y))
    # New cross-covariances are brought to the length of a map, so that one can also be the start.
    length = min(x.shape[1], y.shape[1]) ** 0.5

    def step(cross, index):
        key_x, key_y = jax.random.split(jax.random.fold_in(key, index))
        drawn_x, drawn_y = draw_rows(key_x, x, rows_x), draw_rows(key_y, y, rows_y)
        progress = index / config.anneal_steps
        power = config.spectral_power * jnp.maximum(0, 1 - progress / _ANNEALED_SHARE)
        u, singular, vt = jnp.linalg.svd(cross, full_matrices=False)
        # Half of the power on each side, so that unit length is taken in the space where rows are compared.
        weights = (singular / jnp.maximum(singular[0], jnp.finfo(cross.dtype).tiny)) ** (power / 2).astype(cross.dtype)
        matches = match_csls(
            unit_rows((drawn_x @ u) * weights),
            unit_rows((drawn_y @ vt.T) * weights),
            num_neighbors=config.anneal_neighbors,
        )
        partners_x = drawn_y[matches.x_to_y.index].mean(axis=1)
        partners_y = drawn_x[matches.y_to_x.index].mean(axis=1)
        new = drawn_x.T @ partners_x / rows_x + partners_y.T @ drawn_y / rows_y
        new = new * (length / jnp.maximum(jnp.linalg.norm(new), jnp.finfo(new.dtype).tiny))
        momentum = _FIRST_MOMENTUM + (_LAST_MOMENTUM - _FIRST_MOMENTUM) * progress
        objective = (matches.x_to_y.similarity.mean() + matches.y_to_x.similarity.mean()) / 2
        return (momentum * cross + (1 - momentum) * new).astype(cross.dtype), objective

    cross, objective = jax.lax.scan(step, cross, jnp.arange(config.anneal_steps) if steps is None else steps)
    return Refined(matrix=cross, objective=objective)
