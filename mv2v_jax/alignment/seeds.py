"""A few known pairs: what they say to each stage that pairs rows by itself.

The clusters of both spaces are matched with the pairs as fixed points among them (seeded graph matching, Fishkind et
al., Pattern Recognition 87, 2019): a linear term beside the quadratic one. Wherever a cross-covariance of pseudo-pairs
is made, that of the known pairs is blended in, and counts by how many they are and by how badly a rotation made of the
pseudo-pairs alone finds them: where it finds them nothing changes, and very many pairs decide alone.
"""

import jax
import jax.numpy as jnp

from mv2v_jax.config import Config
from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.masked import present_rows
from mv2v_jax.ops.pytree import pytree

# Pairs that judge how good pseudo-pairs are; more would say the same.
_JUDGES = 512


# Procrustes on p pairs of MiniLM and WordLlama has a FOSCTTM of 2.6 / p to 5.7 / p, from 100 to 2,000 pairs.
_PAIRS_TIMES_FOSCTTM = 4.0


@pytree
class Seeds:
    """Rows that belong together, in the coordinates of the stage that uses them.

    Attributes:
        x: ``[p, d_x]`` centred unit rows of the source; zero where there is no pair.
        y: ``[p, d_y]`` centred unit rows of the target; row i is the partner of row i of ``x``.
    """

    x: jax.Array
    y: jax.Array


def pair_seeds(x: jax.Array | None, y: jax.Array | None) -> Seeds | None:
    """`Seeds` of rows ``[p, d_x]`` and ``[p, d_y]``; none where there are none."""
    if x is None or y is None:
        return None
    both = (present_rows(x) & present_rows(y))[:, None]
    return Seeds(x=jnp.where(both, x, 0), y=jnp.where(both, y, 0))


def worth_in_pairs(rotation: jax.Array, known: Seeds) -> jax.Array:
    """How many known pairs would make a rotation as good as ``rotation [d_x, d_y]``, semi-orthogonal: a scalar.

    By its FOSCTTM among the pairs, both ways: the share of others that are closer than the true partner; as if half a
    row more had been closer of one row more, for few pairs say little.
    """
    x, y = known.x[:_JUDGES], known.y[:_JUDGES]
    present = present_rows(x)
    similarity = x @ rotation @ y.T
    own = jnp.diagonal(similarity)
    others = present[:, None] & present[None] & ~jnp.eye(len(x), dtype=bool)
    closer = (others & (similarity > own[:, None])).sum() + (others & (similarity > own[None])).sum()
    compared = 2 * others.sum()
    return _PAIRS_TIMES_FOSCTTM * (compared.astype(rotation.dtype) + 1) / (closer.astype(rotation.dtype) + 0.5)


def add_seeds(
    cross: jax.Array, num_pseudo: int, known: Seeds, rotation: jax.Array, pair_weight: float | jax.Array
) -> jax.Array:
    """A cross-covariance ``[d_x, d_y]`` of ``num_pseudo`` pseudo-pairs with that of the known pairs added.

    They count ``pair_weight`` times what their number is of what the ``rotation`` is worth: that of the pseudo-pairs,
    or one that stands for it.
    """
    weight = jnp.asarray(pair_weight, cross.dtype) / worth_in_pairs(rotation, known)
    return cross + num_pseudo * weight * (known.x.T @ known.y)


def blend_seeds(cross: jax.Array, num_pseudo: int, known: Seeds | None, config: Config) -> jax.Array:
    """A cross-covariance ``[d_x, d_y]`` of pseudo-pairs with the known ones in it; unchanged where there are none.

    Args:
        cross: sum of the products of pseudo-pairs.
        num_pseudo: how many they are.
        known: `Seeds`, if any.
        config: uses ``pair_weight``.
    """
    if known is None:
        return cross
    return add_seeds(cross, num_pseudo, known, polar(cross), config.pair_weight)


def seed_terms(centers_x: jax.Array, centers_y: jax.Array, known: Seeds | None) -> jax.Array | None:
    """The linear term ``[c, c]`` of matching centres ``[c, d_x]`` and ``[c, d_y]``: known pairs as matched centres.

    Entry ``i, j`` is what matching centre i with centre j adds to the quadratic assignment's objective by the kernel
    entries that both have with the pairs.
    """
    if known is None:
        return None
    to_x, to_y = (
        (centers - centers.mean(axis=0, keepdims=True)) @ rows.T
        for centers, rows in ((centers_x, known.x), (centers_y, known.y))
    )
    # Every such entry stands twice in a symmetric kernel.
    return 2 * to_x @ to_y.T
