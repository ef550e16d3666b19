"""Choose among searches without a label, and compare their maps."""

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.results import Choice, Prepared, Searched
from mv2v_jax.alignment.score import fine_agreement
from mv2v_jax.config import Config
from mv2v_jax.ops.linalg import cosines


def order_by_score(scores: jax.Array) -> jax.Array:
    """Fits of the same data from the best of ``scores [r]`` to the worst, then those not finite: ``[r]`` int32."""
    finite = jnp.where(jnp.isfinite(scores), scores, -jnp.inf)
    return jnp.argsort(-finite, stable=True).astype(jnp.int32)


def map_agreement(maps: jax.Array, x: jax.Array) -> jax.Array:
    """Cosine between the mapped rows ``x [n, d_x]`` of every two of ``maps [r, d_x, d_y]``: ``[r, r]``."""
    moved = jnp.einsum("ab,rbc->rac", x.T @ x / x.shape[0], maps)
    inner = jnp.einsum("rac,sac->rs", moved, maps)
    return cosines(inner)


def agreement_with_others(agreement: jax.Array, chosen: jax.Array) -> jax.Array | None:
    """Median of ``agreement [r, r]`` between the chosen restart and the others; ``None`` where there are none."""
    if agreement.shape[0] == 1:
        return None
    is_other = jnp.arange(agreement.shape[0], dtype=chosen.dtype) != chosen
    return jnp.nanmedian(jnp.where(is_other, agreement[chosen], jnp.nan))


def searched_maps(found: Searched, config: Config) -> jax.Array:
    """The maps of searches whose leaves are ``[r, ...]``, in the searched coordinates: ``[r, r_x, r_y]``."""
    return jax.vmap(lambda estimate: estimate.as_map(project=config.published.project))(found.estimate)


def choose(found: Searched, prepared: Prepared, config: Config) -> Choice:
    """Choose among searches, whose leaves are ``[r, ...]``, by their evidence from held-out rows."""
    order = order_by_score(found.evidence.score)
    chosen = order[0]
    agreement = fine_agreement(searched_maps(found, config), prepared.fitted.x)
    return Choice(
        chosen=chosen,
        order=order,
        weights=jnp.square(jnp.maximum(jnp.nan_to_num(agreement[chosen].at[chosen].set(1)), 0)),
        agreement=agreement,
        with_others=agreement_with_others(agreement, chosen),
    )
