"""Compiles the stages of a fit before their inputs are there, side by side, while files are read and stages run.

A stage can be compiled as soon as the shapes of its inputs are known. `Ahead` traces the whole fit on shapes in a
thread of its own and hands stage after stage to others, which compile. `StageByStage` then waits for the one it needs.
"""

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.api import restart_keys
from mv2v_jax.alignment.fit import fit
from mv2v_jax.alignment.run import SETTLING
from mv2v_jax.alignment.stage_by_stage import StageByStage, jit_stage, signature_of, split_steps
from mv2v_jax.config import Config
from mv2v_jax.data.padding import PaddedRows

T = TypeVar("T")
_logger = logging.getLogger(__name__)

_MAX_THREADS = 4


class _OnShapes(StageByStage):
    """A `Run` that executes nothing and hands every new stage to ``compile_stage(signature, lowered)``."""

    def __init__(self, compile_stage: Callable[[Any, Any], None]) -> None:
        super().__init__(lambda *_: None)
        self._compile_stage = compile_stage
        self._is_settling = False

    def execute(self, name: str, fun: Callable[..., Any], *args: Any) -> Any:
        signature = signature_of(fun, args)
        if signature not in self._compiled:
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf, args
            )
            traced = jit_stage(fun).trace(*shapes)
            self._compiled[signature] = traced.out_info
            self._compile_stage(signature, traced.lower())
        # The stage itself cannot be called here: JAX refuses options of a function that is traced within another one.
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self._compiled[signature])

    def scan(self, name: str, fun: Callable[..., Any], carry: Any, num_steps: int, *args: Any) -> Any:
        chunk, *_ = split_steps(num_steps)
        carry, output = self.execute(name, fun, carry, chunk, *args)
        return carry, jax.tree.map(lambda leaf: jnp.zeros((num_steps, *leaf.shape[1:]), leaf.dtype), output)

    def each(self, name: str, fun: Callable[..., Any], items: jax.Array, *shared: Any) -> Any:
        self._is_settling = name == SETTLING
        result = fun(self, items[0], *shared)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (items.shape[0], *leaf.shape)), result)

    def _log(self, name: str, before: float) -> None:
        """Nothing has run."""

    def when(self, needed: jax.Array, fun: Callable[..., T], otherwise: T, *args: Any) -> T:
        # A second search is the exception, a guided vote before settling the rule.
        return fun(self, otherwise, *args) if self._is_settling else otherwise


class Ahead:
    """The stages of one fit, compiled in threads from the moment it is made.

    Args:
        x: shapes of the padded rows of the source, from `data.padding.padded_shapes`.
        y: shapes of the padded rows of the target.
        config: of the fit.
        num_restarts: of the fit.
        num_settled: of the fit, at least.
    """

    def __init__(self, x: PaddedRows, y: PaddedRows, config: Config, num_restarts: int, num_settled: int) -> None:
        self._stages: dict[Any, Future[Any]] = {}
        self._changed = threading.Condition()
        self._is_traced = self._has_ended = False
        self._pool = ThreadPoolExecutor(1 + min(_MAX_THREADS, os.cpu_count() or 1))
        self._pool.submit(self._trace, x, y, config, num_restarts, num_settled)

    def _trace(self, x: PaddedRows, y: PaddedRows, config: Config, num_restarts: int, num_settled: int) -> None:
        def compile_stage(signature: Any, lowered: Any) -> None:
            with self._changed:
                self._stages[signature] = self._pool.submit(lowered.compile)
                self._changed.notify_all()

        def whole(key: jax.Array, x: PaddedRows, y: PaddedRows) -> Any:
            return fit(_OnShapes(compile_stage), restart_keys(key, 0, num_restarts), x, y, config, num_settled)[0]

        try:
            jax.eval_shape(whole, jax.random.key(0), x, y)
        except Exception:
            # The fit then compiles what it needs by itself. One that has ended takes no more stages.
            if not self._has_ended:
                _logger.warning("stages are not compiled ahead", exc_info=True)
        finally:
            with self._changed:
                self._is_traced = True
                self._changed.notify_all()

    def get(self, signature: Any) -> Any:
        """The compiled stage of a signature, as soon as it is there; ``None`` if it is none of this fit."""
        with self._changed:
            self._changed.wait_for(lambda: signature in self._stages or self._is_traced)
            stage = self._stages.get(signature)
        return None if stage is None else stage.result()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: Any) -> None:
        """Drop what nothing waits for any more."""
        self._has_ended = True
        self._pool.shutdown(wait=False, cancel_futures=True)
