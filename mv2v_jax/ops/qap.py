"""Quadratic assignment: which cluster of one space is which cluster of the other.

Two sets of ``c`` centres are matched by the permutation ``p`` that maximises
``sum_ij kx[i, j] * ky[p[i], p[j]]``, plus ``sum_i linear[i, p[i]]`` where there is prior knowledge of single matches.
On double-centred Gram matrices the first term is the linear CKA of the matched centres, so only the geometry within
each space is compared.

The search is a tabu search over swaps. The gain of *every* swap comes from one ``c x c`` matrix product, so thousands
of starts advance together under ``vmap``; the number of steps is fixed, so no start waits for another. The starts are
linear assignments (`optax.assignment`) of the sorted rows of both kernels.
"""

import chex
import jax
import jax.numpy as jnp
import optax.assignment

from mv2v_jax.ops.pytree import pytree


@pytree
class Assignment:
    """A permutation and its objective.

    Attributes:
        permutation: ``[c]`` int32; row ``i`` of the first kernel is matched with row ``permutation[i]`` of the second.
        objective: scalar, ``sum_ij kx[i, j] * ky[p[i], p[j]]``, plus the linear term where there is one.
    """

    permutation: jax.Array
    objective: jax.Array


@pytree
class _SearchState:
    permutation: jax.Array  # [c]
    permuted: jax.Array  # [c, c], ky[p][:, p]
    linear: jax.Array | None  # [c, c], the linear term with columns in the present order
    forbidden_until: jax.Array  # [c, c], i, j: step until which row i may not take row j's present partner
    objective: jax.Array
    best: Assignment


def centered_kernel(centers: jax.Array) -> jax.Array:
    """Double-centred Gram matrix ``H C C^T H`` of ``centers [c, d]``: ``[c, c]``."""
    chex.assert_rank(centers, 2)
    # Centring the rows first equals H on both sides, and keeps digits that the Gram matrix would lose.
    centered = centers - centers.mean(axis=0, keepdims=True)
    return centered @ centered.T


def assignment_objective(kx: jax.Array, ky: jax.Array, permutation: jax.Array) -> jax.Array:
    """``sum_ij kx[i, j] * ky[p[i], p[j]]`` for kernels ``[c, c]`` and a permutation ``[c]``."""
    return jnp.vdot(kx, ky[permutation][:, permutation])


def _whole_objective(kx, ky, linear, permutation):
    objective = assignment_objective(kx, ky, permutation)
    return objective if linear is None else objective + linear[jnp.arange(len(permutation)), permutation].sum()


def swap_gains(kx: jax.Array, permuted: jax.Array) -> jax.Array:
    """Change of the objective for every swap of two assignments, from one matrix product.

    Args:
        kx: ``[c, c]``, symmetric.
        permuted: ``[c, c]``, symmetric: the second kernel with rows and columns in the present order.

    Returns:
        ``[c, c]``, symmetric with zero diagonal; entry ``r, q`` is the gain of exchanging the partners of r and q.
    """
    product = kx @ permuted
    here = jnp.diagonal(product)
    kx_diag, permuted_diag = jnp.diagonal(kx), jnp.diagonal(permuted)
    # gap[r, q] = k_rr - k_rq, and its transpose k_qq - k_rq.
    kx_gap = kx_diag[:, None] - kx
    permuted_gap = permuted_diag[:, None] - permuted
    first_order = product + product.T - here[:, None] - here[None, :]
    # first_order treats the change of the entries (r, r), (r, q) and (q, q) as linear in the swap. It is not, and the
    # next two terms correct this.
    twice_counted = kx_gap * permuted_gap + kx_gap.T * permuted_gap.T
    corner = (kx_diag[:, None] - kx_diag[None, :]) * (permuted_diag[None, :] - permuted_diag[:, None])
    return 2 * (first_order + twice_counted) + corner


def _exchange(matrix: jax.Array, r: jax.Array, q: jax.Array, axis: int) -> jax.Array:
    """Exchange slices r and q along an axis. Selects, because a batched gather is slow on CPU."""
    place = jnp.arange(matrix.shape[axis]).reshape([-1 if a == axis else 1 for a in range(matrix.ndim)])
    at_r = jax.lax.dynamic_slice_in_dim(matrix, r, 1, axis)
    at_q = jax.lax.dynamic_slice_in_dim(matrix, q, 1, axis)
    return jnp.where(place == r, at_q, jnp.where(place == q, at_r, matrix))


def _swap_step(state: _SearchState, inputs: tuple[jax.Array, jax.Array], kx: jax.Array) -> tuple[_SearchState, None]:
    """Take the best swap that is not forbidden, even a losing one, so that the search leaves local optima."""
    step, tenures = inputs
    num_rows = kx.shape[0]
    gains = swap_gains(kx, state.permuted)
    if state.linear is not None:
        here = jnp.diagonal(state.linear)
        gains += state.linear + state.linear.T - here[:, None] - here[None]
    still_forbidden = state.forbidden_until > step
    forbidden = still_forbidden & still_forbidden.T
    leads_to_best = state.objective + gains > state.best.objective
    allowed = jnp.triu(leads_to_best | ~forbidden, k=1)
    # If every swap is forbidden, entry (0, 0) is taken: it swaps row 0 with itself, and the search pauses for one step.
    choice = jnp.argmax(jnp.where(allowed, gains, -jnp.inf))
    r, q = choice // num_rows, choice % num_rows
    permutation = _exchange(state.permutation, r, q, 0)
    permuted = _exchange(_exchange(state.permuted, r, q, 0), r, q, 1)
    # The places that r and q leave are on the diagonal. Selects again: a batched scatter is slow on CPU.
    row = jnp.arange(num_rows)
    leaves = jnp.diag(jnp.where(row == r, step + tenures[0], jnp.where(row == q, step + tenures[1], 0)))
    forbidden_until = _exchange(jnp.maximum(state.forbidden_until, leaves), r, q, 1)
    objective = state.objective + gains[r, q]
    better = objective > state.best.objective
    best = Assignment(
        permutation=jnp.where(better, permutation, state.best.permutation),
        objective=jnp.where(better, objective, state.best.objective),
    )
    return _SearchState(
        permutation=permutation,
        permuted=permuted,
        linear=None if state.linear is None else _exchange(state.linear, r, q, 1),
        forbidden_until=forbidden_until,
        objective=objective,
        best=best,
    ), None


def draw_tenures(key: jax.Array, num_rows: int, num_starts: int, num_steps: int) -> jax.Array:
    """For how many steps each of both partners of a swap is forbidden: ``[num_starts, num_steps, 2]`` int32."""
    # Robust tabu search (Taillard 1991) draws each tenure from 0.9 c to 1.1 c.
    shortest, longest = int(0.9 * num_rows), int(1.1 * num_rows) + 1
    # randint would call the random function twice more, to be exact on ranges of billions. In one row, see `sampling`.
    bits = jax.random.bits(key, (num_starts * num_steps * 2,), jnp.uint32)
    tenures = shortest + (bits % (longest - shortest + 1)).astype(jnp.int32)
    return tenures.reshape(num_starts, num_steps, 2)


def search_from(
    tenures: jax.Array, kx: jax.Array, ky: jax.Array, start: jax.Array, *, linear: jax.Array | None = None
) -> Assignment:
    """Tabu search from one permutation ``start [c]``, with ``tenures [num_steps, 2]``; see `search_assignment`."""
    objective = _whole_objective(kx, ky, linear, start)
    state = _SearchState(
        permutation=start,
        permuted=ky[start][:, start],
        linear=None if linear is None else linear[:, start],
        forbidden_until=jnp.zeros_like(kx, dtype=jnp.int32),
        objective=objective,
        best=Assignment(permutation=start, objective=objective),
    )
    steps = jnp.arange(len(tenures), dtype=jnp.int32)
    state, _ = jax.lax.scan(lambda s, i: _swap_step(s, i, kx), state, (steps, tenures))
    # The carried objective is a long sum of gains, so the returned one is computed anew.
    best = state.best.permutation
    return Assignment(permutation=best, objective=_whole_objective(kx, ky, linear, best))


def _profile_costs(kx: jax.Array, ky: jax.Array) -> jax.Array:
    """Squared distances ``[c, c]`` between the sorted rows of two kernels."""
    profiles_x, profiles_y = jnp.sort(kx, axis=1), jnp.sort(ky, axis=1)
    return jnp.sum((profiles_x[:, None] - profiles_y[None]) ** 2, axis=-1)


def search_assignment(
    key: jax.Array,
    kx: jax.Array,
    ky: jax.Array,
    *,
    num_starts: int,
    num_steps: int,
    linear: jax.Array | None = None,
) -> Assignment:
    """Maximise ``sum_ij kx[i, j] * ky[p[i], p[j]]`` over permutations: the best of several tabu searches.

    Args:
        key: random key; draws the noise of the starts and the tabu tenures.
        kx: ``[c, c]``, symmetric. To minimise, negate it. One of the two matrices may be asymmetric: replace it by
            ``(a + a.T) / 2``, which leaves every objective as it is.
        ky: ``[c, c]``, symmetric.
        num_starts: number of starting permutations, searched side by side. They are linear assignments of the sorted
            entries of each row, which no permutation changes; the first without noise, the others with increasing
            noise. On k-means kernels they end nearer to the optimum than random starts (``benchmarks/speed.py``).
        num_steps: number of swaps per start. About ``c`` swaps reach the first local optimum.
        linear: ``[c, c]``, a term ``sum_i linear[i, p[i]]`` of the objective: prior knowledge of matches, if any.

    Source: robust tabu search, E. Taillard, Parallel Computing 17 (1991).
    """
    kx, ky, linear = jax.tree.map(jnp.asarray, (kx, ky, linear))
    chex.assert_rank((kx, ky), 2)
    chex.assert_equal_shape((kx, ky) if linear is None else (kx, ky, linear))

    profile_costs = _profile_costs(kx, ky)
    if linear is not None:
        # One unit of the objective equals two units of squared distance.
        profile_costs -= 2 * linear
    spread = profile_costs.std()

    def search(noise, tenures):
        rows, columns = optax.assignment.hungarian_algorithm(profile_costs + spread * noise)
        start = jnp.zeros(kx.shape[0], jnp.int32).at[rows].set(columns.astype(jnp.int32))
        return search_from(tenures, kx, ky, start, linear=linear)

    noise_key, tenure_key = jax.random.split(key)
    # In one row, see `sampling`.
    noise = jax.random.normal(noise_key, (num_starts * kx.size,), kx.dtype).reshape(num_starts, *kx.shape)
    # From an assignment without noise to one that is half noise: starts differ, and all use the profiles.
    noise *= jnp.linspace(0, 1, num_starts, dtype=kx.dtype)[:, None, None]
    found = jax.vmap(search)(noise, draw_tenures(tenure_key, len(kx), num_starts, num_steps))
    best = jnp.argmax(found.objective)
    return jax.tree.map(lambda values: values[best], found)
