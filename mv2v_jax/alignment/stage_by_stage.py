"""Runs of a fit whose parts are compiled one by one, so that a program can show its progress."""

import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.alignment.fit import max_settled
from mv2v_jax.alignment.polish import polishing_steps
from mv2v_jax.alignment.run import SEARCHING, SETTLING, Inline, WholeItems
from mv2v_jax.alignment.stages import SEARCH_STAGES, SETTLING_STAGES
from mv2v_jax.config import Config
from mv2v_jax.data.padding import spread
from mv2v_jax.ops.sharding import RESTART, on_host
from mv2v_jax.progress import COMPILING, OnStep

T = TypeVar("T")
_logger = logging.getLogger(__name__)

# Rough cost of one step in steps of the annealed refinement, from the bundled data; that of others is 1.
_COSTS = {"anchors": 0.5, "evidence": 4.0, "refine_annealed_again": 4.0, "refine_csls": 10.0, "refine_whole": 7.0}

# The same for one step of polishing, which is reported as a whole.
_POLISHING_COST = 1.5

# On CPU, LLVM's full effort and emitters with an MLIR context per kernel take three tenths of compiling and gain
# nothing.
_CPU_OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}


@functools.cache
def _cpu_options() -> dict[str, Any] | None:
    """The options above, if this version of XLA knows them."""
    try:
        jax.jit(lambda x: x, compiler_options=_CPU_OPTIONS).lower(0).compile()
    except (RuntimeError, ValueError):
        return None
    return _CPU_OPTIONS


def jit_stage(fun: Callable[..., Any]) -> Any:
    """`jax.jit` of a function that runs for a while and is compiled for this process alone."""
    # Who asked for little optimisation gets it.
    is_plain = jax.default_backend() != "cpu" or jax.config.values["jax_disable_most_optimizations"]
    return jax.jit(fun, compiler_options=None if is_plain else _cpu_options())


def signature_of(fun: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What decides whether one compiled stage serves several calls: the function, the structure and the shapes."""
    leaves, structure = jax.tree.flatten(args)
    return (fun, structure, *((leaf.shape, leaf.dtype) for leaf in leaves if hasattr(leaf, "shape")))


class StageByStage:
    """A `Run` that compiles each stage by itself and reports every chunk of steps.

    Results of several calls are joined by NumPy, because every operation of JAX outside of a stage is compiled by
    itself, and together these took longer than any stage.

    Args:
        on_step: called with a stage's name, the number of steps done and the number of steps to do.
        get_compiled: returns the stage of a signature if it was compiled ahead, otherwise ``None``.

    Attributes:
        compile_seconds: waiting for stages to be traced and compiled so far.
        seconds: running so far.
    """

    def __init__(self, on_step: OnStep, get_compiled: Callable[[Any], Any] = lambda _: None) -> None:
        self.compile_seconds = 0.0
        self.seconds = 0.0
        self._on_step, self._get_compiled = on_step, get_compiled
        self._label = ""
        self._compiled: dict[Any, Any] = {}

    def execute(self, name: str, fun: Callable[..., Any], *args: Any) -> Any:
        """``fun(*args)``, compiled once per function, structure and shapes."""
        started = time.perf_counter()
        signature = signature_of(fun, args)
        compiled = self._compiled.get(signature)
        if compiled is None:
            self._on_step(COMPILING + self._label + name, 0, 1)
            compiled = self._get_compiled(signature) or self._jit(fun, args).lower(*args).compile()
            self._compiled[signature] = compiled
            _logger.info("compiled %s%s in %.2f s", self._label, name, time.perf_counter() - started)
        ready = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        self.compile_seconds += ready - started
        self.seconds += time.perf_counter() - ready
        return result

    def call(self, name: str, fun: Callable[..., Any], *args: Any) -> Any:
        before = self.seconds
        self._on_step(self._label + name, 0, 1)
        result = self.execute(name, fun, *args)
        self._on_step(self._label + name, 1, 1)
        self._log(name, before)
        return result

    def scan(self, name: str, fun: Callable[..., Any], carry: Any, num_steps: int, *args: Any) -> Any:
        outputs, before = [], self.seconds
        for chunk in self._follow(name, num_steps):
            carry, output = self.execute(name, fun, carry, chunk, *args)
            outputs.append(output)
        self._log(name, before)
        return carry, jax.device_put(jax.tree.map(lambda *leaves: np.concatenate(leaves), *outputs))

    def each(self, name: str, fun: Callable[..., Any], items: jax.Array, *shared: Any) -> Any:
        results = []
        is_key = jax.dtypes.issubdtype(items.dtype, jax.dtypes.prng_key)
        for number, item in enumerate(items if is_key else np.asarray(items)):
            self._label = f"{name} {number + 1} " if items.shape[0] > 1 else ""
            results.append(fun(self, item, *shared))
        self._label = ""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *results)

    def when(self, needed: jax.Array, fun: Callable[..., T], otherwise: T, *args: Any) -> T:
        return fun(self, otherwise, *args) if needed else otherwise

    def _jit(self, fun: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return jit_stage(fun)

    def _log(self, name: str, before: float) -> None:
        _logger.info("ran %s%s in %.2f s", self._label, name, self.seconds - before)

    def _follow(self, name: str, num_steps: int) -> Iterator[np.ndarray]:
        """Chunks of a stage's steps, each reported as done when the next is asked for."""
        stage, done = self._label + name, 0
        self._on_step(stage, done, num_steps)
        for chunk in split_steps(num_steps):
            yield chunk
            done += len(chunk)
            self._on_step(stage, done, num_steps)


@functools.cache
def _inline(batch_size: int, name: str, fun: Callable[..., Any]) -> Callable[..., Any]:
    """All items of ``each`` as one function, the same for equal arguments, so that it is compiled once."""
    return functools.partial(Inline(batch_size).each, name, fun)


class OverMesh(WholeItems, StageByStage):
    """A `Run` over a mesh: a search is compiled as a whole, and reported when it ends, with those beside it.

    Args:
        on_step: as for `StageByStage`.
        mesh: over which searches and rows are sharded. All its processes run the same.
        batch_size: number of searches side by side on each device.
    """

    def __init__(self, on_step: OnStep, mesh: Mesh, batch_size: int) -> None:
        super().__init__(on_step)
        self._mesh, self._batch_size = mesh, batch_size

    def _jit(self, fun: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return jax.jit(spread(fun, self._mesh, args))

    def each(self, name: str, fun: Callable[..., Any], items: jax.Array, *shared: Any) -> Any:
        number, batch_size = items.shape[0], self._batch_size if name == SEARCHING else 1
        together = min(number, batch_size * self._mesh.shape[RESTART])
        self._on_step(name, 0, number)
        parts = []
        for first in range(0, number, together):
            # The last ones are filled up with others, so that they run in the same compiled function.
            chosen = items[(first + np.arange(together)) % number]
            parts.append(on_host(self.execute(name, _inline(batch_size, name, fun), chosen, *shared)))
            done = min(first + together, number)
            self._on_step(name, done, number)
            _logger.info("%s: %d of %d", name, done, number)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:number], *parts)


def split_steps(num_steps: int) -> list[np.ndarray]:
    """Step numbers in about ten or more chunks of one length, so that each stage compiles once."""
    length = max(size for size in range(1, max(1, num_steps // 10) + 1) if num_steps % size == 0)
    return list(np.arange(num_steps, dtype=jax.dtypes.canonicalize_dtype(int)).reshape(-1, length))


def expected_stages(
    config: Config, num_rows: int, num_restarts: int, num_settled: int, mesh: Mesh | None = None
) -> dict[str, float]:
    """The stages of a fit by the names under which these runs report them, with their costs.

    Args:
        config: the config of the fit.
        num_rows: rows of the smaller space.
        num_restarts: number of searches.
        num_settled: number of searches that are settled, at least.
        mesh: over which it runs, if any.
    """
    rows = min(num_rows, config.max_rows)
    search = {"anchors": config.anchors.num_sets, "first estimate": 1}
    search |= {stage.name: stage.num_steps(rows, config) for stage in SEARCH_STAGES} | {"evidence": 1}
    settling = {stage.name: stage.num_steps(rows, config) for stage in SETTLING_STAGES}
    expected = {"preprocess": 1.0}
    for label, number, most, stages in (
        (SEARCHING, num_restarts, num_restarts, search),
        (SETTLING, min(num_settled, num_restarts), max_settled(config, num_restarts, num_settled), settling),
    ):
        costs = {name: steps * _COSTS.get(name, 1.0) for name, steps in stages.items() if steps}
        if mesh is not None:
            expected[label] = number * sum(costs.values()) / mesh.shape[RESTART]
            continue
        for index in range(number):
            prefix = f"{label} {index + 1} " if most > 1 else ""
            expected |= {prefix + name: cost for name, cost in costs.items()}
    polished = min(rows, config.settling.whole_rows)
    return expected | {"polish": _POLISHING_COST * polishing_steps(polished, polished, config) + 1.0, "finish": 1.0}
