"""Evidence from unlabelled rows: how far a map carries rows it has never seen to where the other space has rows.

What a fit maximises says nothing about the map: with a few thousand rows it learns the very pairs it was matched by,
and a wrong map can end with the higher objective. So some rows of both spaces are kept out of the fit, and mapped rows
are asked how close their nearest rows of the other space are, on a scale that the data itself gives: 0 is what the same
rows reach after a reflection that keeps every variance and breaks the geometry (the null), 1 is how close rows of one
space lie to each other, as if the encoders were the same.

A space whose rows crowd into few directions lets any map come close. Where the two geometries have nothing in common,
though, every anchor set was matched in its own way; so how far the sets agree is a factor of the score.
"""

import jax
import jax.numpy as jnp

from mv2v_jax.neighbors import nearness
from mv2v_jax.preprocess import Space, order_rows, unit_rows
from mv2v_jax.pytree import pytree
from mv2v_jax.types import Evidence

# Fitted rows that held-out rows are compared with; more would say the same and cost more.
_BANK_ROWS = 8_192
# Nearness is the mean over so many groups of them.
_NUM_GROUPS = 10
_NUM_NULLS = 8
# The scale from null to within is at least this many deviations of the nulls long: in a cloud without geometry it would
# be no longer than chance.
_LEAST_ROOM = 5


@pytree
class HoldOut:
    """One space in two parts.

    Attributes:
        fitted: ``[n - h, d]`` rows to fit with.
        held_out: ``[h, d]`` rows to score with.
    """

    fitted: jax.Array
    held_out: jax.Array


def num_held_out(num_rows: int, most: int) -> int:
    """How many of ``num_rows`` rows are kept out of the fit: ``most``, but no more than a tenth."""
    return min(most, num_rows // 10)


def hold_out(space: Space, num_rows: int) -> HoldOut:
    """Keep ``num_rows`` rows of a space out of the fit, at most a tenth of them; zero rows only if there are no others.

    Which rows depends on their number alone: every restart is scored on the same rows, whatever its key.
    """
    n = space.rows.shape[0]
    num_held = num_held_out(n, num_rows)
    (order,) = order_rows(jax.random.key(n), space.rows)
    shuffled = space.rows[order.index]
    return HoldOut(fitted=shuffled[num_held:], held_out=shuffled[:num_held])


def gather_evidence(key: jax.Array, x: HoldOut, y: HoldOut, W: jax.Array, set_agreement: jax.Array) -> Evidence:
    """Score the map ``W [d_x, d_y]`` on held-out rows.

    Args:
        key: draws the reflections.
        x: rows of the source.
        y: rows of the target.
        W: the map, before directions are weighted.
        set_agreement: ``[s]``, of the anchor sets it came from, see `anchors.set_agreement`.
    """
    # A single set has no other to agree with.
    agreement = jnp.median(set_agreement) if set_agreement.shape[0] > 1 else jnp.ones((), W.dtype)
    num_rows = jnp.asarray(min(x.held_out.shape[0], y.held_out.shape[0]), jnp.int32)
    if not (x.held_out.shape[0] and y.held_out.shape[0]):
        nothing = jnp.zeros((), W.dtype)
        return Evidence(
            cross=nothing,
            within=nothing,
            null=nothing,
            null_deviation=nothing,
            num_rows=num_rows,
            closeness=nothing,
            anchor_agreement=agreement,
            score=nothing,
        )
    queries_x, bank_x = unit_rows(x.held_out @ W), unit_rows(x.fitted[:_BANK_ROWS] @ W)
    queries_y, bank_y = y.held_out, y.fitted[:_BANK_ROWS]

    def nearness_of(queries, bank):
        return nearness(queries, bank, num_groups=_NUM_GROUPS).mean()

    directions = jnp.linalg.eigh(bank_y.T @ bank_y)[1]

    def reflected(key):
        signs = jax.random.rademacher(key, (directions.shape[0],), dtype=W.dtype)
        reflection = (directions * signs[None]) @ directions.T
        return (nearness_of(queries_x @ reflection, bank_y) + nearness_of(queries_y @ reflection, bank_x)) / 2

    nulls = jax.lax.map(reflected, jax.random.split(key, _NUM_NULLS))
    cross = (nearness_of(queries_x, bank_y) + nearness_of(queries_y, bank_x)) / 2
    within = (nearness_of(queries_x, bank_x) + nearness_of(queries_y, bank_y)) / 2
    null = nulls.mean()
    closeness = (cross - null) / jnp.maximum(within - null, _LEAST_ROOM * (nulls.std() + jnp.finfo(W.dtype).eps))
    return Evidence(
        cross=cross,
        within=within,
        null=null,
        null_deviation=nulls.std(),
        num_rows=num_rows,
        closeness=closeness,
        anchor_agreement=agreement,
        score=closeness * jnp.maximum(agreement, 0),
    )
