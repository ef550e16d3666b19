"""A fit whose stages are compiled one by one, so that a program can show its progress.

`mv2v_jax.align_restarts` is one compiled function and stays silent until it is done. `StageByStage` runs the same `fit`
with each stage compiled by itself and the long ones in chunks of steps, with the same keys. The result is the same up
to rounding, no compiled function calls back, and compiling is timed apart from running.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.alignment.api import (
    Keep,
    Restarts,
    check_restarts,
    fit_restarts,
    prepare_restarts,
    restart_keys,
    restart_maps,
)
from mv2v_jax.alignment.fit import fit
from mv2v_jax.config import Config
from mv2v_jax.data.inputs import check_inputs, pad_inputs

T = TypeVar("T")
OnStep = Callable[[str, int, int], None]


class TimedFit(NamedTuple):
    """A fit and the time it took.

    Attributes:
        result: `Restarts`.
        compile_seconds: waiting for stages to be traced and compiled.
        seconds: running, all stages: the steady time of the fit, unless others are compiled ahead meanwhile.
    """

    result: Restarts
    compile_seconds: float
    seconds: float


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
            compiled = self._get_compiled(signature) or jit_stage(fun).lower(*args).compile()
            self._compiled[signature] = compiled
        ready = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        self.compile_seconds += ready - started
        self.seconds += time.perf_counter() - ready
        return result

    def call(self, name: str, fun: Callable[..., Any], *args: Any) -> Any:
        self._on_step(self._label + name, 0, 1)
        result = self.execute(name, fun, *args)
        self._on_step(self._label + name, 1, 1)
        return result

    def scan(self, name: str, fun: Callable[..., Any], carry: Any, num_steps: int, *args: Any) -> Any:
        outputs = []
        for chunk in self._follow(name, num_steps):
            carry, output = self.execute(name, fun, carry, chunk, *args)
            outputs.append(output)
        return carry, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outputs)

    def each(self, name: str, fun: Callable[..., Any], items: jax.Array, *shared: Any) -> Any:
        results = []
        for number in range(items.shape[0]):
            self._label = f"{name} {number + 1} " if items.shape[0] > 1 else ""
            results.append(fun(self, items[number], *shared))
        self._label = ""
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    def when(self, needed: jax.Array, fun: Callable[..., T], otherwise: T, *args: Any) -> T:
        return fun(self, otherwise, *args) if needed else otherwise

    def _follow(self, name: str, num_steps: int) -> Iterator[jax.Array]:
        """Chunks of a stage's steps, each reported as done when the next is asked for."""
        stage, done = self._label + name, 0
        self._on_step(stage, done, num_steps)
        for chunk in split_steps(num_steps):
            yield chunk
            done += len(chunk)
            self._on_step(stage, done, num_steps)


def split_steps(num_steps: int) -> list[jax.Array]:
    """Step numbers in about ten or more chunks of one length, so that each stage compiles once."""
    length = max(size for size in range(1, max(1, num_steps // 10) + 1) if num_steps % size == 0)
    return list(jnp.arange(num_steps).reshape(-1, length))


def align_with_progress(
    key: jax.Array,
    x: Any,
    y: Any,
    config: Config,
    on_step: OnStep,
    num_restarts: int = 1,
    num_settled: int = 1,
    pairs: tuple[Any, Any] | None = None,
    keep: Keep = "summary",
    get_compiled: Callable[[Any], Any] = lambda _: None,
) -> TimedFit:
    """Fit as `mv2v_jax.align_restarts` does, calling ``on_step(stage, done, total)`` after every chunk of steps.

    Args:
        key: random key.
        x: ``[n, d_x]`` raw rows of the source.
        y: ``[m, d_y]`` raw rows of the target.
        config: as for `align_restarts`.
        on_step: called on the host with a stage's name, the number of steps done and the number of steps to do.
        num_restarts: as for `align_restarts`.
        num_settled: as for `align_restarts`.
        pairs: as for `align_restarts`.
        keep: ``"summary"`` or ``"all"``, as for `align_restarts`.
        get_compiled: as for `StageByStage`.

    Raises:
        InputError: as `align_restarts`.
    """
    x, y, seeds = check_inputs(key, x, y, config, pairs)
    check_restarts(num_restarts, min(x.shape[0], y.shape[0]), config, num_settled)
    padded = pad_inputs(x, y, seeds, config)
    run = StageByStage(on_step, get_compiled)
    best, searched = fit(run, restart_keys(key, 0, num_restarts), *padded, config, num_settled)
    result = Restarts(
        best=best,
        chosen=searched.choice.chosen,
        evidence=searched.found.evidence,
        agreement=searched.choice.agreement,
        trajectory=searched.found.trajectory,
        maps=restart_maps(searched, config) if keep == "all" else None,
    )
    return TimedFit(result=result, compile_seconds=run.compile_seconds, seconds=run.seconds)


def align_on_mesh(
    key: jax.Array,
    x: Any,
    y: Any,
    config: Config,
    on_step: OnStep,
    mesh: Mesh,
    num_restarts: int = 1,
    num_settled: int = 1,
    pairs: tuple[Any, Any] | None = None,
    keep: Keep = "summary",
) -> TimedFit:
    """Fit as `mv2v_jax.align_restarts` does over a mesh, in one piece; ``on_step`` is called at its start and end.

    Arguments as for `align_with_progress`; every process of the mesh calls this together.
    """
    x, y, choices = prepare_restarts(
        key, x, y, config, num_restarts=num_restarts, num_settled=num_settled, mesh=mesh, pairs=pairs, keep=keep
    )
    on_step("fit", 0, 1)
    started = time.perf_counter()
    compiled = fit_restarts.lower(key, x, y, config, **choices).compile()
    ready = time.perf_counter()
    result = jax.tree.map(np.asarray, compiled(key, x, y, config))
    on_step("fit", 1, 1)
    return TimedFit(result=result, compile_seconds=ready - started, seconds=time.perf_counter() - ready)
