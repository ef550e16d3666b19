"""The one decorator behind every config, state and result: a frozen dataclass that is also a JAX pytree."""

import dataclasses
import html
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only dataclass that JAX flattens into its fields.

    A field with ``metadata={"static": True}`` belongs to the structure: two values of it compile two programs. All
    others are leaves or subtrees. Printing an object shows dtypes and shapes instead of numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> @pytree
        ... class Centers:
        ...     rows: jax.Array
        >>> Centers(rows=jnp.zeros((3, 2)))
        Centers(rows=float32[3,2])
    """
    own_repr = "__repr__" in vars(cls)
    made = dataclasses.dataclass(frozen=True, kw_only=True, repr=False)(cls)
    if not own_repr:
        made.__repr__ = _repr  # type: ignore[method-assign]
    made._repr_html_ = _repr_html  # type: ignore[attr-defined]
    if not hasattr(made, "replace"):
        made.replace = dataclasses.replace  # type: ignore[attr-defined]
    return jax.tree_util.register_dataclass(made)


def describe(value: Any) -> str:
    """One short piece of text for a field: a scalar as its value, an array as dtype and shape."""
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        if (
            value.ndim == 0
            and not isinstance(value, jax.core.Tracer)
            and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
        ):
            return f"{np.asarray(value).item():.5g}" if np.issubdtype(value.dtype, np.floating) else str(value)
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {describe(item)}" for name, item in value.items()) + "}"
    return repr(value)


def _repr(self: Any) -> str:
    fields = (f"{field.name}={describe(getattr(self, field.name))}" for field in dataclasses.fields(self))
    return f"{type(self).__name__}({', '.join(fields)})"


def _repr_html(self: Any) -> str:
    """The same as a table, for notebooks."""
    if type(self).__repr__ is not _repr:
        return f"<pre>{html.escape(repr(self))}</pre>"
    rows = "".join(
        f"<tr><td>{field.name}</td><td>{html.escape(describe(getattr(self, field.name)))}</td></tr>"
        for field in dataclasses.fields(self)
    )
    return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"
