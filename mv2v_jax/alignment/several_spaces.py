"""Maps between several spaces, each fitted alone, made into one consistent set; and which of the fits was wrong.

Orthogonal synchronisation: every space ``i`` gets a frame ``O_i [d_i, r]`` in one common space, such that ``O_i O_j^T``
is near the fitted ``W_ij`` for all pairs. The frames start as eigenvectors of the block matrix of all maps (Singer,
Applied and Computational Harmonic Analysis 2011) and are polished by the generalised power method (Ling, SIAM J. Optim.
2022), a polar factor per space and round.

One wrong fit would bend all others a little. So a map counts by how far it agrees with what the others say: first over
the detours by a third space, then, round by round, with the frames (iteratively reweighted, as in Wang and Singer,
Information and Inference 2013). Detours need cycles: a map that is in none cannot be doubted, and of a single cycle
that does not close every map may be the wrong one.
"""

import dataclasses
from collections.abc import Hashable, Mapping

import jax
import jax.numpy as jnp

from mv2v_jax.config import _static, _traced
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.masked import working_dtype
from mv2v_jax.ops.pytree import pytree

Pair = tuple[Hashable, Hashable]


# What a map counts at first, at least: where no detour agrees with anything the maps alone must do.
_MIN_WEIGHT = 1e-3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """Choices of `synchronize`; integers are static, floats traced."""

    num_dims: int = _static(0, "dimensions of the common space; 0 for those of the largest")
    num_rounds: int = _static(20, "rounds of weights and frames after the eigenvectors")
    weight_power: float = _traced(2.0, "power of its agreement by which a map counts; 0 for all alike")
    min_agreement: float = _traced(0.3, "a map that agrees less with the others is called wrong")


@pytree
class Synchronized:
    """What `synchronize` returns. Scalars per pair have the keys of the maps given.

    Attributes:
        maps: a `LinearMap` for every ordered pair of different spaces, fitted or not, by way of the frames.
        frames: per space, ``[d_i, r]`` with orthonormal rows or columns, whichever are fewer.
        agreement: cosine of each given map, as a rotation, with that of the set: 1 where it is the same.
        cycle_residual: one minus the mean cosine of each given map with its detours by one other space, the detours
            weighted by what their maps count; 0 where there is none.
        weight: how much each given map counted, at most about 1.
        wrong: bool, whether ``agreement`` is below ``config.min_agreement``: maps of the set should replace it.
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
    """Dimensions of every space, by name, in the order they appear; checks that the maps fit each other."""
    dims: dict[Hashable, int] = {}
    for pair, linear_map in maps.items():
        if not isinstance(pair, tuple) or len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"maps must have pairs of different spaces for keys, found {pair!r}")
        for space, found in zip(pair, linear_map.W.shape, strict=True):
            if dims.setdefault(space, found) != found:
                raise ValueError(f"space {space!r} has {dims[space]} dimensions in one map and {found} in {pair!r}")
    if not dims:
        raise ValueError("there must be at least one map")
    reached = {next(iter(dims))}
    for _ in dims:
        reached |= {space for pair in maps if reached & set(pair) for space in pair}
    if missing := [space for space in dims if space not in reached]:
        raise ValueError(f"no chain of maps leads from {next(iter(dims))!r} to {missing[0]!r}")
    return dims


def _block(rotations: dict[Pair, jax.Array], pair: Pair) -> jax.Array:
    """The rotation from one space to another, whichever way it was given."""
    return rotations[pair] if pair in rotations else rotations[pair[::-1]].T


def _detours(rotations, weights, dims) -> dict[Pair, tuple[jax.Array, jax.Array]]:
    """Per map, the sum of the cosines with its detours, weighted, and the sum of the weights."""
    directed = {*rotations, *(pair[::-1] for pair in rotations)}
    found = {}
    for pair, rotation in rotations.items():
        total, count = jnp.zeros((), rotation.dtype), jnp.zeros((), rotation.dtype)
        for other in dims:
            legs = ((pair[0], other), (other, pair[1]))
            if other not in pair and directed.issuperset(legs):
                there = _block(rotations, legs[0]) @ _block(rotations, legs[1])
                weight = _block(weights, legs[0]) * _block(weights, legs[1])
                total, count = total + weight * _cosine(rotation, there), count + weight
        found[pair] = (total, count)
    return found


def _leading(rotations, weights, spaces: list[Hashable], width: int) -> list[jax.Array]:
    """Per space, ``width`` columns: its part of the leading eigenvectors of the block matrix of all maps."""
    rotation = next(iter(rotations.values()))
    # The same degrees throughout: a space whose maps are all to smaller ones has nothing to say of what is left.
    degree = [sum(weight for pair, weight in weights.items() if space in pair) for space in spaces]
    sizes = {space: matrix.shape[side] for pair, matrix in rotations.items() for side, space in enumerate(pair)}

    def block(i, j):
        total = jnp.zeros((sizes[spaces[i]], sizes[spaces[j]]), rotation.dtype)
        for pair, weight in weights.items():
            if set(pair) == {spaces[i], spaces[j]}:
                total = total + weight * _block({pair: rotations[pair]}, (spaces[i], spaces[j]))
        return total / jnp.sqrt(degree[i] * degree[j])

    numbers = range(len(spaces))
    vectors = jnp.linalg.eigh(jnp.block([[block(i, j) for j in numbers] for i in numbers]))[1][:, -width:]
    ends = [sum(sizes[space] for space in spaces[: number + 1]) for number in numbers]
    return [vectors[end - sizes[space] : end] for space, end in zip(spaces, ends, strict=True)]


def _start(rotations, weights, dims, num_dims: int) -> dict[Hashable, jax.Array]:
    """Frames from eigenvectors: first as many directions as all spaces have, then what the larger ones have besides.

    All at once, in a sparse set of maps, what few spaces share would come after the second best of what all do.
    """
    room = {space: min(d, num_dims) for space, d in dims.items()}
    frames = {space: jnp.zeros((d, 0), next(iter(rotations.values())).dtype) for space, d in dims.items()}
    filled = 0
    for size in sorted({*room.values(), num_dims}):
        if size > filled:
            left = {(a, b): rotation - frames[a] @ (frames[a].T @ rotation) for (a, b), rotation in rotations.items()}
            left = {(a, b): rotation - (rotation @ frames[b]) @ frames[b].T for (a, b), rotation in left.items()}
            spaces = list(dims)
            for space, columns in zip(spaces, _leading(left, weights, spaces, size - filled), strict=True):
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

    alike = {pair: jnp.ones((), dtype) for pair in rotations}
    by_detours = {
        pair: jnp.where(count > 0, total / jnp.maximum(count, 1), 1)
        for pair, (total, count) in _detours(rotations, alike, dims).items()
    }

    def count_by(agreement):
        return {pair: jnp.maximum(cosine, _MIN_WEIGHT) ** power for pair, cosine in agreement.items()}

    def agreements(frames):
        return {pair: _cosine(rotations[pair], frames[pair[0]] @ frames[pair[1]].T) for pair in rotations}

    def polish(frames, _):
        weights = count_by(agreements(frames))
        pulls = dict(frames)
        for (a, b), weight in weights.items():
            pulls[a] = pulls[a] + weight * rotations[a, b] @ frames[b]
            pulls[b] = pulls[b] + weight * rotations[a, b].T @ frames[a]
        return {space: polar(pull) for space, pull in pulls.items()}, None

    frames = _start(rotations, count_by(by_detours), dims, num_dims)
    frames, _ = jax.lax.scan(polish, frames, length=config.num_rounds)
    agreement = agreements(frames)
    weights = count_by(agreement)
    means, scales = (_average_by_space(maps, weights, kind, dtype) for kind in ("mean", "scale"))
    return Synchronized(
        maps={
            (a, b): LinearMap(
                W=frames[a] @ frames[b].T, mean_x=means[a], mean_y=means[b], scale_x=scales[a], scale_y=scales[b]
            )
            for a in dims
            for b in dims
            if a != b
        },
        frames=frames,
        agreement=agreement,
        cycle_residual={
            pair: jnp.where(count > 0, 1 - total / jnp.where(count > 0, count, 1), 0)
            for pair, (total, count) in _detours(rotations, weights, dims).items()
        },
        weight=weights,
        wrong={pair: cosine < config.min_agreement for pair, cosine in agreement.items()},
    )


def _average_by_space(maps: dict[Pair, LinearMap], weights, kind: str, dtype) -> dict[Hashable, jax.Array]:
    """What the maps have as ``mean`` or ``scale`` of each space, averaged by what they count."""
    sums: dict[Hashable, jax.Array] = {}
    counts: dict[Hashable, jax.Array] = {}
    for pair, given in maps.items():
        for space, side in zip(pair, "xy", strict=True):
            value = getattr(given, f"{kind}_{side}").astype(dtype) * weights[pair]
            sums[space] = sums[space] + value if space in sums else value
            counts[space] = counts.get(space, jnp.zeros((), dtype)) + weights[pair]
    return {space: total / jnp.maximum(counts[space], jnp.finfo(dtype).tiny) for space, total in sums.items()}


def synchronize(maps: Mapping[Pair, LinearMap], config: SyncConfig | None = None) -> Synchronized:
    """Make maps between several spaces, each fitted alone, into one consistent set, and find the wrong ones.

    Args:
        maps: a `LinearMap` per pair of spaces, ``{("a", "b"): ..., ("b", "c"): ...}``: names of one sort, either
            direction or both, not necessarily all pairs. Whitened maps, as `align` returns them, count as their polar
            factors. All in one dtype.
        config: a `SyncConfig`; the defaults if none.

    Returns:
        `Synchronized`: rotations between all spaces, agreement and cycle residual of every map given.

    Raises:
        ValueError: keys that are no pairs, dimensions that contradict each other, spaces that no chain of maps joins.

    The maps of the set go by one common space of ``r`` dimensions. Where every space has as many, one way round is as
    good as another, ``W_ij W_jk = W_ik``; a space with fewer loses on the way what it has no room for. With
    ``config.num_dims`` the fewest of all, every way is the same again, and large spaces lose the rest.
    """
    maps = dict(maps)
    dims = _spaces(maps)
    config = SyncConfig() if config is None else config
    if not 0 <= config.num_dims <= max(dims.values()):
        raise ValueError(f"num_dims must be from 0 to {max(dims.values())}, found {config.num_dims}")
    return _synchronize(maps, config)
