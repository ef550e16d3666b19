"""The one decorator behind every state, info and result: a frozen dataclass that JAX takes apart."""

from typing import TypeVar, dataclass_transform

import chex

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def pytree(cls: type[T]) -> type[T]:
    """`chex.dataclass`, frozen and keyword-only. The wrapper tells type checkers what chex, being untyped, cannot."""
    return chex.dataclass(cls, frozen=True, kw_only=True, mappable_dataclass=False)
