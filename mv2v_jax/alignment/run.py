"""How the steps of a fit are carried out: `Run`, and `Inline`, which traces everything into one program."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

from mv2v_jax.ops.sharding import RESTART, all_gather, shard

T = TypeVar("T")

SEARCHING, SETTLING = "restart", "settling"


class Run(Protocol):
    """How the steps of a fit are carried out. Functions get everything they use as arguments."""

    def call(self, name: str, fun: Callable[..., Any], *args: Any) -> Any:
        """``fun(*args)``."""

    def scan(self, name: str, fun: Callable[..., Any], carry: Any, num_steps: int, *args: Any) -> Any:
        """``fun(carry, steps, *args) -> (carry, outputs)`` for all steps; outputs are ``[num_steps, ...]``."""

    def each(self, name: str, fun: Callable[..., Any], items: jax.Array, *shared: Any) -> Any:
        """``fun(run, item, *shared)`` for each of ``items [r]``; results are ``[r, ...]``."""

    def when(self, needed: jax.Array, fun: Callable[..., T], otherwise: T, *args: Any) -> T:
        """``fun(run, otherwise, *args)`` where the bool scalar ``needed`` is true, otherwise ``otherwise``."""


class WholeItems:
    """What a `Run` refuses whose searches and settlings run as wholes, in ``each``: single steps, and conditions."""

    def scan(self, name: str, fun: Callable[..., Any], carry: Any, num_steps: int, *args: Any) -> Any:
        raise NotImplementedError("searching and settling run as a whole, in each")

    def when(self, needed: jax.Array, fun: Callable[..., T], otherwise: T, *args: Any) -> T:
        raise NotImplementedError("a condition belongs to a search, which runs as a whole, in each")


@dataclasses.dataclass(frozen=True)
class Inline:
    """Carries out every step where it stands, for a fit that is traced as one program.

    Attributes:
        batch_size: number of searches that run side by side on each device; ``None`` traces a single restart without
            any loop.
    """

    batch_size: int | None = None

    def call(self, name: str, fun: Callable[..., Any], *args: Any) -> Any:
        return fun(*args)

    def scan(self, name: str, fun: Callable[..., Any], carry: Any, num_steps: int, *args: Any) -> Any:
        return fun(carry, jnp.arange(num_steps), *args)

    def each(self, name: str, fun: Callable[..., Any], items: jax.Array, *shared: Any) -> Any:
        """Over a mesh's restart axis each device has its share of the items."""
        if self.batch_size is None and items.shape[0] == 1:
            return jax.tree.map(lambda leaf: leaf[None], fun(self, items[0], *shared))
        mine = items[shard(jnp.arange(items.shape[0]), RESTART)]
        # Settling holds all rows of both spaces, so it runs for one restart after the other.
        # A batch of one would turn the condition of `when` into a choice between two results that are both computed.
        batch_size = self.batch_size if name == SEARCHING and self.batch_size != 1 else None
        found = jax.lax.map(lambda item: fun(self, item, *shared), mine, batch_size=batch_size)
        return all_gather(found, RESTART, items.shape[0])

    def when(self, needed: jax.Array, fun: Callable[..., T], otherwise: T, *args: Any) -> T:
        """Restarts side by side are computed both ways."""
        return jax.lax.cond(needed, lambda *operands: fun(self, *operands), lambda first, *_: first, otherwise, *args)
