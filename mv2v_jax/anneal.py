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

# The cross-covariance is averaged over steps, with a memory that grows as the matches become right.
_FIRST_MOMENTUM, _LAST_MOMENTUM = 0.5, 0.9


def _match_and_average(key, x, y, cross, *, num_rows, num_neighbors, power, momentum):
    """One step: match random rows under spectral weights, and average their cross-covariance into the running one."""
    key_x, key_y = jax.random.split(key)
    drawn_x, drawn_y = (
        draw_rows(draw_key, rows, min(num_rows, -(-rows.shape[0] // 2))) for draw_key, rows in ((key_x, x), (key_y, y))
    )
    u, singular, vt = jnp.linalg.svd(cross, full_matrices=False)
    tiny = jnp.finfo(cross.dtype).tiny
    # Half of the power on each side, so that unit length is taken in the space where rows are compared.
    weights = ((singular / jnp.maximum(singular[0], tiny)) ** (power / 2).astype(cross.dtype))[None]
    matches = match_csls(
        unit_rows((drawn_x @ u) * weights), unit_rows((drawn_y @ vt.T) * weights), num_neighbors=num_neighbors
    )
    partners_of_x = drawn_y[matches.x_to_y.index].mean(axis=1)
    partners_of_y = drawn_x[matches.y_to_x.index].mean(axis=1)
    new = drawn_x.T @ partners_of_x / drawn_x.shape[0] + partners_of_y.T @ drawn_y / drawn_y.shape[0]
    # Brought to the length of a semi-orthogonal map, so that a map can also be the start.
    new = new * (min(cross.shape) ** 0.5 / jnp.maximum(jnp.linalg.norm(new), tiny))
    objective = (matches.x_to_y.similarity.mean() + matches.y_to_x.similarity.mean()) / 2
    return (momentum * cross + (1 - momentum) * new).astype(cross.dtype), objective


def _scan(key, x, y, cross, *, steps, num_steps, num_rows, first_power, config) -> Refined:
    def step(cross, index):
        progress = index / num_steps
        return _match_and_average(
            jax.random.fold_in(key, index),
            x,
            y,
            cross,
            num_rows=num_rows,
            num_neighbors=config.csls_neighbors,
            power=first_power * (1 - progress),
            momentum=_FIRST_MOMENTUM + (_LAST_MOMENTUM - _FIRST_MOMENTUM) * progress,
        )

    matrix, objective = jax.lax.scan(step, cross, jnp.arange(num_steps) if steps is None else steps)
    return Refined(matrix=matrix, objective=objective)


def refine_annealed(
    key: jax.Array, x: jax.Array, y: jax.Array, matrix: jax.Array, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """Match random rows of both spaces again and again, with spectral weights annealed to a rotation.

    Args:
        key: random key; step ``i`` depends on ``fold_in(key, i)`` alone.
        x: ``[n, d_x]`` centred unit rows.
        y: ``[m, d_y]`` centred unit rows.
        matrix: ``[d_x, d_y]``, a map or a cross-covariance to start from.
        config: uses ``anneal_*``, ``spectral_power`` and ``csls_neighbors``.
        steps: ``[t]`` numbers of the steps to take; all of ``config.anneal_steps`` by default.

    Returns:
        `Refined`: the running cross-covariance, and the mean CSLS of the rows with their best matches.
    """
    return _scan(
        key,
        x,
        y,
        matrix,
        steps=steps,
        num_steps=config.anneal_steps,
        num_rows=config.anneal_rows,
        first_power=config.spectral_power,
        config=config,
    )


def refine_csls(
    key: jax.Array, x: jax.Array, y: jax.Array, matrix: jax.Array, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """Settle an annealed map: the same steps without spectral weights, on more rows, where partners lie closer.

    Arguments and result as for `refine_annealed`; uses ``csls_steps``, ``csls_rows`` and ``csls_neighbors``.
    """
    return _scan(
        key,
        x,
        y,
        matrix,
        steps=steps,
        num_steps=config.csls_steps,
        num_rows=config.csls_rows,
        first_power=jnp.zeros(()),
        config=config,
    )
