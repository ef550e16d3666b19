"""What every fit does with its arguments before anything is traced: check them, and pad the rows."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mv2v_jax.config import Config, check_config
from mv2v_jax.data.checks import check_fitting_rows, check_key, check_pairs
from mv2v_jax.data.padding import PaddedRows, pad_rows
from mv2v_jax.ops.masked import working_dtype


def check_inputs(key: Any, x: Any, y: Any, config: Config, pairs: Any = None) -> tuple[Any, Any, tuple[Any, Any]]:
    """Check the arguments of a fit.

    Returns:
        The rows of both spaces, and the known pairs' rows of each space, ``(None, None)`` without pairs.

    Raises:
        InputError: the first argument that cannot be used.
    """
    check_key(key)
    check_config(config)
    x, y = check_fitting_rows(x, "x", config), check_fitting_rows(y, "y", config)
    return x, y, check_pairs(pairs, x, y)


def pad_inputs(
    x: Any, y: Any, seeds: tuple[Any, Any], config: Config, mesh: Mesh | None = None
) -> tuple[PaddedRows, PaddedRows]:
    """Pad the checked rows of both spaces, at most ``config.max_rows`` rows of each."""
    padded_x, padded_y = (pad_rows(rows, config.max_rows, mesh, side) for rows, side in zip((x, y), seeds, strict=True))
    return _in_one_dtype(padded_x, padded_y)


def _in_one_dtype(x: PaddedRows, y: PaddedRows) -> tuple[PaddedRows, PaddedRows]:
    """Rows of both spaces as they are, or in float64 where one side has it and the other has not."""
    dtypes = [working_dtype(side.rows.dtype) for side in (x, y)]
    if dtypes[0] == dtypes[1]:
        return x, y

    def widen(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(widen, (x, y))


def prepare_inputs(
    key: Any, x: Any, y: Any, config: Config, pairs: Any = None, mesh: Mesh | None = None
) -> tuple[PaddedRows, PaddedRows]:
    """`check_inputs`, then `pad_inputs`."""
    x, y, seeds = check_inputs(key, x, y, config, pairs)
    return pad_inputs(x, y, seeds, config, mesh)
