"""Errors for users, raised before anything compiles; nothing here runs inside a compiled function."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.types import Config

_AT_LEAST = {
    "num_anchor_sets": 1,
    "num_clusters": 2,
    "anchor_rows": 2,
    "num_starts": 1,
    "kept_sets": 1,
    "num_neighbors": 1,
    "match_rows": 1,
    "match_neighbors": 1,
    "anneal_rows": 2,
    "csls_rows": 2,
    "csls_neighbors": 1,
    "refine_clusters": 2,
}
_FLOAT_RANGE = {"spectral_power": (0.0, 4.0), "smoothing": (0.0, 1.0)}


def check_config(config: Config) -> None:
    """Raise `ValueError` naming the first field that is out of range, what was expected and what was found."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _FLOAT_RANGE:
            low, high = _FLOAT_RANGE[field.name]
            # Traced or batched floats cannot be looked at; they are the caller's own sweep.
            if isinstance(value, (int, float)) and not low <= value <= high:
                raise ValueError(f"{field.name} must be from {low} to {high}, found {value}")
        elif field.type is int:
            at_least = _AT_LEAST.get(field.name, 0)
            if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
                raise ValueError(f"{field.name} must be a whole number of at least {at_least}, found {value!r}")
    if config.anchor_rows < config.num_clusters:
        raise ValueError(
            f"anchor_rows must be at least num_clusters ({config.num_clusters}), found {config.anchor_rows}"
        )
    if (config.anneal_steps or config.csls_steps) and not config.project:
        raise ValueError(
            "project must be true where anneal_steps or csls_steps is not 0 (these stages return a cross-covariance, "
            f"not a map), found project={config.project}"
        )


def check_embeddings(x: Any, name: str, config: Config) -> jax.Array:
    """Return ``x`` as a JAX array, or raise `ValueError` in one sentence naming ``name``.

    Shapes and dtypes are always checked; the values only where they are concrete, not under a transformation.
    """
    array = x if isinstance(x, jax.Array) else np.asarray(x)
    if array.ndim != 2:
        raise ValueError(f"{name} must be two-dimensional, one embedding a row, found shape {list(array.shape)}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must hold floating-point embeddings, found dtype {array.dtype}")
    if array.shape[0] < config.num_clusters:
        raise ValueError(f"{name} must have at least num_clusters ({config.num_clusters}) rows, found {array.shape[0]}")
    if array.shape[1] < 1:
        raise ValueError(f"{name} must have at least one column, found shape {list(array.shape)}")
    if not isinstance(array, jax.core.Tracer):
        check_values(array, name)
    return jnp.asarray(array)


def check_values(array: Any, name: str) -> None:
    """Raise `ValueError` where rows hold NaN or infinity, or where all rows are equal."""
    finite = np.asarray(jnp.isfinite(array).all(axis=1))
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(f"{name} must be finite, found NaN or infinity in {bad.size} rows, first in row {bad[0]}")
    if bool((array == array[:1]).all()):
        raise ValueError(f"{name} must hold different rows, found {array.shape[0]} equal ones")
