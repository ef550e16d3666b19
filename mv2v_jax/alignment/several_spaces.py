"""Make separately fitted maps between several spaces consistent, and find the wrong ones.

Orthogonal synchronisation: each space ``i`` gets a frame ``O_i [d_i, r]`` into one common space, such that
``O_i O_j^T`` is close to the fitted ``W_ij`` for all pairs. The frames start as eigenvectors of the block matrix of all
maps (Singer, Applied and Computational Harmonic Analysis 2011). The generalised power method then refines them, with
one polar factor per space and round (Ling, SIAM J. Optim. 2022).

One wrong map would bend all others. So each map has a weight that depends on its agreement with the others: at first
with its detours over a third space, then in every round with the frames (iteratively reweighted, as in Wang and Singer,
Information and Inference 2013). A map that is in no cycle has no detour and cannot be found wrong. If there is only one
cycle and it does not close, any map of it may be the wrong one.
"""

from collections.abc import Hashable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.data.checks import check_map
from mv2v_jax.errors import InputError
from mv2v_jax.linear_map import Centering, LinearMap
from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.masked import working_dtype
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.settings import Settings, as_config, count, number

Pair = tuple[Hashable, Hashable]

# Minimum agreement in a weight, so that the weights do not vanish if no map agrees with any other.
_MIN_WEIGHT = 1e-3


@pytree
class SyncConfig(Settings):
    """Settings of `synchronize`. Integers are static, floats are traced."""

    num_dims: int = count(0, "Number of dimensions of the common space; 0 for those of the largest space.")
    num_rounds: int = count(20, "Number of rounds of reweighting after the start from eigenvectors.")
    weight_power: float = number(2.0, "The weight of a map is its agreement to this power; 0 for equal weights.")
    min_agreement: float = number(0.3, "A map whose agreement is below this is reported as wrong.", low=-1.0, high=1.0)


@pytree
class Synchronized:
    """Result of `synchronize`. The dicts of scalars have the keys of the given maps.

    Attributes:
        maps: a consistent `LinearMap` ``O_i O_j^T`` for every ordered pair of different spaces, fitted or not.
        frames: ``O_i [d_i, r]`` per space, with orthonormal rows or columns, whichever are fewer.
        agreement: cosine between each given map, as a rotation, and the consistent one; 1 if they are equal.
        cycle_residual: one minus the mean cosine of each given map with its detours over one other space, weighted by
            the weights of the maps on the detour; 0 without a detour.
        weight: final weight of each given map, at most about 1.
        wrong: bool, whether ``agreement`` is below ``config.min_agreement``. Use the consistent map instead.
    """

    maps: dict[Pair, LinearMap]
    frames: dict[Hashable, jax.Array]
    agreement: dict[Pair, jax.Array]
    cycle_residual: dict[Pair, jax.Array]
    weight: dict[Pair, jax.Array]
    wrong: dict[Pair, jax.Array]


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    lengths = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    return jnp.sum(a * b) / jnp.maximum(lengths, jnp.finfo(a.dtype).tiny)


def _spaces(maps: Mapping[Pair, LinearMap]) -> dict[Hashable, int]:
    """Number of dimensions of each space, in order of appearance; raises `InputError` unless the maps fit together."""
    if not maps:
        raise InputError("maps must hold at least one map, found none")
    dims: dict[Hashable, int] = {}
    for pair, linear_map in maps.items():
        if not isinstance(pair, tuple) or len(pair) != 2 or pair[0] == pair[1]:
            raise InputError(f"maps must have pairs of different spaces as keys, found {pair!r}")
        sizes = check_map(linear_map, name=f"maps[{pair!r}]")
        for space, size, other in zip(pair, sizes, sizes[::-1], strict=True):
            if dims.setdefault(space, size) != size:
                hint = f"; is this the map from {pair[1]!r} to {pair[0]!r}?" if dims[space] == other else ""
                raise InputError(
                    f"maps[{pair!r}] must have {dims[space]} dimensions for space {space!r}, as another map has, "
                    f"found {size}{hint}"
                )
    reached = {next(iter(dims))}
    for _ in dims:
        reached |= {space for pair in maps if reached & set(pair) for space in pair}
    if missing := [space for space in dims if space not in reached]:
        raise InputError(f"maps must connect all spaces, found no chain from {next(iter(dims))!r} to {missing[0]!r}")
    return dims


def _block(rotations: dict[Pair, jax.Array], pair: Pair) -> jax.Array:
    """The rotation or weight of a pair, from that of the reversed pair if necessary."""
    return rotations[pair] if pair in rotations else rotations[pair[::-1]].T


def _detours(rotations, weights, dims) -> dict[Pair, tuple[jax.Array, jax.Array]]:
    """Per map, the weighted sum of its cosines with its detours, and the sum of the weights."""
    directed = {*rotations, *(pair[::-1] for pair in rotations)}
    found = {}
    for pair, rotation in rotations.items():
        cosines, total = jnp.zeros((), rotation.dtype), jnp.zeros((), rotation.dtype)
        for other in dims:
            legs = ((pair[0], other), (other, pair[1]))
            if other not in pair and directed.issuperset(legs):
                detour = _block(rotations, legs[0]) @ _block(rotations, legs[1])
                weight = _block(weights, legs[0]) * _block(weights, legs[1])
                cosines, total = cosines + weight * _cosine(rotation, detour), total + weight
        found[pair] = (cosines, total)
    return found


def _leading(rotations, weights, dims: dict[Hashable, int], width: int) -> list[jax.Array]:
    """Leading eigenvectors of the block matrix of all maps, ``[d_i, width]`` for each space."""
    dtype = next(iter(rotations.values())).dtype
    # Degrees count the maps, not their norms: a space whose maps all lead to smaller spaces has empty blocks for the
    # directions that are left, and must not be scaled up.
    degree = {space: sum(weight for pair, weight in weights.items() if space in pair) for space in dims}

    def block(a, b):
        total = jnp.zeros((dims[a], dims[b]), dtype)
        for pair, weight in weights.items():
            if set(pair) == {a, b}:
                total = total + weight * _block({pair: rotations[pair]}, (a, b))
        return total / jnp.sqrt(degree[a] * degree[b])

    vectors = jnp.linalg.eigh(jnp.block([[block(a, b) for b in dims] for a in dims]))[1][:, -width:]
    return jnp.split(vectors, np.cumsum(list(dims.values()))[:-1])


def _start(rotations, weights, dims, num_dims: int) -> dict[Hashable, jax.Array]:
    """Frames from eigenvectors: first for as many directions as all spaces have, then for those of larger spaces only.

    One decomposition for all directions would fail with few maps: the second eigenvectors of directions that all spaces
    share can have larger eigenvalues than the first eigenvectors of directions that few spaces share.
    """
    room = {space: min(d, num_dims) for space, d in dims.items()}
    frames = {space: jnp.zeros((d, 0), next(iter(rotations.values())).dtype) for space, d in dims.items()}
    filled = 0
    for size in sorted({*room.values(), num_dims}):
        if size > filled:
            left = {(a, b): rotation - frames[a] @ (frames[a].T @ rotation) for (a, b), rotation in rotations.items()}
            left = {(a, b): rotation - (rotation @ frames[b]) @ frames[b].T for (a, b), rotation in left.items()}
            for space, columns in zip(dims, _leading(left, weights, dims, size - filled), strict=True):
                orthogonal = polar(columns) if room[space] >= size else jnp.zeros_like(columns)
                frames[space] = jnp.concatenate([frames[space], orthogonal], axis=1)
            filled = size
    return {space: polar(frame) for space, frame in frames.items()}


@jax.jit
def _synchronize(maps: dict[Pair, LinearMap], config: SyncConfig) -> Synchronized:
    dims = _spaces(maps)
    dtype = working_dtype(next(iter(maps.values())).W.dtype)
    num_dims = config.num_dims or max(dims.values())
    power = jnp.asarray(config.weight_power, dtype)
    rotations = {pair: polar(given.W.astype(dtype)) for pair, given in maps.items()}

    equal = {pair: jnp.ones((), dtype) for pair in rotations}
    by_detours = {
        pair: jnp.where(total > 0, cosines / jnp.maximum(total, 1), 1)
        for pair, (cosines, total) in _detours(rotations, equal, dims).items()
    }

    def weigh(agreement):
        return {pair: jnp.maximum(cosine, _MIN_WEIGHT) ** power for pair, cosine in agreement.items()}

    def agreements(frames):
        return {pair: _cosine(rotations[pair], frames[pair[0]] @ frames[pair[1]].T) for pair in rotations}

    def power_step(frames, _):
        weights = weigh(agreements(frames))
        pulls = dict(frames)
        for (a, b), weight in weights.items():
            pulls[a] = pulls[a] + weight * rotations[a, b] @ frames[b]
            pulls[b] = pulls[b] + weight * rotations[a, b].T @ frames[a]
        return {space: polar(pull) for space, pull in pulls.items()}, None

    frames = _start(rotations, weigh(by_detours), dims, num_dims)
    frames, _ = jax.lax.scan(power_step, frames, length=config.num_rounds)
    agreement = agreements(frames)
    weights = weigh(agreement)
    centerings = _average_centerings(maps, weights, dtype)
    return Synchronized(
        maps={
            (a, b): LinearMap(W=frames[a] @ frames[b].T, source=centerings[a], target=centerings[b])
            for a in dims
            for b in dims
            if a != b
        },
        frames=frames,
        agreement=agreement,
        cycle_residual={
            pair: jnp.where(total > 0, 1 - cosines / jnp.where(total > 0, total, 1), 0)
            for pair, (cosines, total) in _detours(rotations, weights, dims).items()
        },
        weight=weights,
        wrong={pair: cosine < config.min_agreement for pair, cosine in agreement.items()},
    )


def _average_centerings(maps: dict[Pair, LinearMap], weights, dtype) -> dict[Hashable, Centering]:
    """The `Centering` of each space: the weighted mean over its maps."""
    found: dict[Hashable, list[tuple[jax.Array, Centering]]] = {}
    for pair, given in maps.items():
        for space, centering in zip(pair, (given.source, given.target), strict=True):
            found.setdefault(space, []).append((weights[pair], centering))

    def weighted_mean(weights_and_centerings):
        total = jnp.maximum(sum(weight for weight, _ in weights_and_centerings), jnp.finfo(dtype).tiny)
        scaled = [
            jax.tree.map(lambda leaf, weight=weight: leaf.astype(dtype) * weight, centering)
            for weight, centering in weights_and_centerings
        ]
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) / total, *scaled)

    return {space: weighted_mean(of_space) for space, of_space in found.items()}


def synchronize(maps: Mapping[Pair, LinearMap], config: SyncConfig | None = None) -> Synchronized:
    """Make separately fitted maps between several spaces consistent, and find the wrong ones.

    The consistent maps go through one common space of ``r`` dimensions. If all spaces have ``r`` dimensions, every way
    gives the same map: ``W_ij W_jk = W_ik``. A way through a smaller space loses directions. If ``config.num_dims`` is
    the dimension of the smallest space, every way is the same again, and larger spaces lose their other directions.

    A pure function for `jax.jit` and `jax.vmap`.

    Args:
        maps: a `LinearMap` per pair of spaces, ``{("a", "b"): ..., ("b", "c"): ...}``, in one direction or both, for
            all pairs or some. The names must be sortable. All maps have the same dtype. Whitened maps, such as `align`
            returns, are replaced by their polar factors.
        config: a `SyncConfig`; the defaults if ``None``.

    Returns:
        `Synchronized`: maps between all spaces, and the agreement of each given map with them.

    Raises:
        InputError: no map, keys that are not pairs, values that are not maps, dimensions that contradict each other,
            spaces that no chain of maps connects, or a setting that is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> centering = Centering(mean=jnp.zeros(2), scale=jnp.ones(()))
        >>> turn = LinearMap(W=jnp.array([[0.0, 1.0], [-1.0, 0.0]]), source=centering, target=centering)
        >>> found = synchronize({("en", "fr"): turn, ("fr", "de"): turn})
        >>> bool(jnp.allclose(found.maps["en", "de"].W, -jnp.eye(2), atol=1e-5))
        True
    """
    if not isinstance(maps, Mapping):
        raise InputError(f"maps must be a dict of a LinearMap per pair of spaces, found {type(maps).__name__}")
    maps = dict(maps)
    dims = _spaces(maps)
    config = as_config(config, SyncConfig)
    if not 0 <= config.num_dims <= max(dims.values()):
        raise InputError(f"num_dims must be from 0 to {max(dims.values())}, found {config.num_dims}")
    return _synchronize(maps, config)
