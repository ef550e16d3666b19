"""Two mesh axes: restarts are spread over one, without communication, and the rows of each restart over the other.

The stages are written for one device. Inside `shard_map` over a mesh from `make_mesh` the functions here find the axis
and give each device its share of the work. Elsewhere there is one device, and they return their arguments. A fit sees
few enough rows for every device to hold all of them: the work is sharded, not the memory.
"""

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mv2v_jax.errors import InputError

T = TypeVar("T")

RESTART, ROW = "restart", "row"
# Specs of values that every device holds, and of rows of which each device holds its share.
EVERYWHERE, BY_ROWS = PartitionSpec(), PartitionSpec(ROW)


def make_mesh(num_restarts: int, *, row_devices: int | None = None, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of axes ``restart`` and ``row`` over all devices of all processes.

    Args:
        num_restarts: number of searches to run.
        row_devices: number of devices that share the rows of one restart. By default as few as keep every device busy,
            because restarts do not communicate.
        devices: the devices to use; all by default.

    Raises:
        InputError: ``row_devices`` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if row_devices is None:
        left = len(devices) // math.gcd(len(devices), num_restarts)
        # The largest power of two in it, which divides the padded rows of all but small data.
        row_devices = left & -left
    if row_devices < 1 or len(devices) % row_devices:
        raise InputError(f"row devices must divide the {len(devices)} devices there are, found {row_devices}")
    grid = np.asarray(devices).reshape(-1, row_devices)
    return Mesh(grid, (RESTART, ROW), axis_types=(AxisType.Auto, AxisType.Auto))


def over_mesh(fun, mesh: Mesh | None, *specs: Any):
    """``fun`` on every device of a mesh, with the same results on all; ``fun`` itself without a mesh.

    Args:
        fun: takes arrays; splits its work by `shard` and joins it by `all_gather`, `psum` and `pmax`.
        mesh: from `make_mesh`, or ``None``.
        specs: `EVERYWHERE`, `BY_ROWS` or a tree of them for every argument.
    """
    if mesh is None:
        return fun
    # Replicated values are equal because every device computes them from the same numbers, which JAX cannot see.
    return jax.shard_map(fun, mesh=mesh, in_specs=specs, out_specs=EVERYWHERE, check_vma=False)


def num_shards(axis: str) -> int:
    """Number of devices along an axis of the mesh that is being mapped over; 1 without a mesh.

    A mesh with only one axis of these names belongs to the caller and is ignored.
    """
    is_ours = {RESTART, ROW} <= set(jax.sharding.get_abstract_mesh().manual_axes)
    return jax.lax.axis_size(axis) if is_ours else 1


def shard(values: Any, axis: str) -> Any:
    """Share of this device of arrays ``[n, ...]``: ``[ceil(n / shards), ...]``, padded with zeros at the end."""
    parts = num_shards(axis)
    if parts == 1:
        return values

    def share(array):
        length = -(-array.shape[0] // parts)
        padded = jnp.pad(array, ((0, parts * length - array.shape[0]), *[(0, 0)] * (array.ndim - 1)))
        return jax.lax.dynamic_slice_in_dim(padded, jax.lax.axis_index(axis) * length, length)

    return jax.tree.map(share, values)


def all_gather(values: Any, axis: str, length: int) -> Any:
    """Arrays ``[length, ...]``, put together from every device's `shard`."""
    if num_shards(axis) == 1:
        return values
    return jax.tree.map(lambda array: jax.lax.all_gather(array, axis, tiled=True)[:length], values)


def psum(values: Any, axis: str) -> Any:
    """Sum over the devices of an axis."""
    return values if num_shards(axis) == 1 else jax.lax.psum(values, axis)


def pmax(values: Any, axis: str) -> Any:
    """Elementwise maximum over the devices of an axis."""
    return values if num_shards(axis) == 1 else jax.lax.pmax(values, axis)


def all_gather_columns(values: Any, axis: str) -> Any:
    """Arrays ``[n, k]`` of all devices, side by side: ``[n, shards * k]``."""
    if num_shards(axis) == 1:
        return values
    return jax.tree.map(lambda array: jax.lax.all_gather(array, axis, axis=1, tiled=True), values)


def make_sharded(shape: tuple[int, ...], mesh: Mesh, spec: PartitionSpec, read) -> jax.Array:
    """An array over a mesh; each process reads the shards of its own devices by ``read(slices)``."""
    return jax.make_array_from_callback(shape, NamedSharding(mesh, spec), read)


def on_host(tree: T) -> T:
    """Arrays of any devices as NumPy arrays, which every process can read."""
    return jax.tree.map(np.asarray, tree)


def is_first() -> bool:
    """Whether this process writes and speaks for all."""
    return jax.process_index() == 0


def from_first(values: Any) -> Any:
    """Arrays or numbers as the first process has them, bit for bit; in the others only shape and dtype count."""
    if jax.process_count() == 1:
        return values
    arrays = jax.tree.map(np.asarray, values)
    # As bytes: what is sent is a sum with zeros, which would turn -0.0 into 0.0.
    sent = multihost_utils.broadcast_one_to_all(
        jax.tree.map(lambda array: np.frombuffer(array.tobytes(), np.uint8), arrays)
    )
    return jax.tree.map(
        lambda array, data: np.frombuffer(np.asarray(data).tobytes(), array.dtype).reshape(array.shape), arrays, sent
    )
