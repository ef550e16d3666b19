"""The same fit in separately compiled pieces, so that a program can show how far it is.

`mv2v_jax.align` is one compiled function and stays silent until it is done. Here its stages are compiled one by one and
the long ones run in chunks of steps, with the same keys: the result is the same up to rounding, no compiled function
calls back, and compiling is timed apart from running.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mv2v_jax.anchors import AnchorSets, match_anchor_sets
from mv2v_jax.pipeline import REFINEMENTS, finish, initial_map, split_keys
from mv2v_jax.preprocess import fit_space
from mv2v_jax.types import AlignResult, Config
from mv2v_jax.validate import check_config, check_fitting_rows

OnStep = Callable[[str, int, int], None]


class TimedFit(NamedTuple):
    """A fit and what it took.

    Attributes:
        result: `AlignResult`.
        compile_seconds: tracing and compiling, all stages.
        seconds: running, all stages: the steady time of the fit.
    """

    result: AlignResult
    compile_seconds: float
    seconds: float


class _Stopwatch:
    """Runs functions compiled ahead of time and adds up both times."""

    def __init__(self) -> None:
        self.compile_seconds = 0.0
        self.seconds = 0.0
        self._compiled: dict[Any, Any] = {}

    def run(self, fun: Callable[..., Any], *args: Any) -> Any:
        started = time.perf_counter()
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(args) if hasattr(leaf, "shape"))
        compiled = self._compiled.get((fun, shapes))
        if compiled is None:
            compiled = self._compiled[fun, shapes] = jax.jit(fun).lower(*args).compile()
        ready = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        self.compile_seconds += ready - started
        self.seconds += time.perf_counter() - ready
        return result


def _chunks(num_steps: int) -> list[jax.Array]:
    """Step numbers in about ten or more chunks of one length, so that each stage compiles once."""
    length = max(size for size in range(1, max(1, num_steps // 10) + 1) if num_steps % size == 0)
    return list(jnp.arange(num_steps).reshape(-1, length))


def align_with_progress(key: jax.Array, x: Any, y: Any, config: Config, on_step: OnStep) -> TimedFit:
    """Fit as `mv2v_jax.align` does, telling ``on_step(stage, done, total)`` after every chunk.

    Args:
        key: random key.
        x: ``[n, d_x]`` raw rows of the source.
        y: ``[m, d_y]`` raw rows of the target.
        config: as for `align`.
        on_step: called on the host with a stage's name, the steps done and the steps to do.

    Raises:
        InputError: as `align`.
    """
    check_config(config)
    x, y = (jnp.asarray(check_fitting_rows(rows, name, config)) for rows, name in ((x, "x"), (y, "y")))
    watch = _Stopwatch()
    keys = split_keys(key)
    on_step("preprocess", 0, 1)
    space_x, space_y = watch.run(fit_space, x), watch.run(fit_space, y)
    on_step("preprocess", 1, 1)

    def some_sets(key, rows_x, rows_y, config, sets):
        return match_anchor_sets(key, rows_x, rows_y, config=config, sets=sets)

    found: list[AnchorSets] = []
    for chunk in _follow("anchors", config.num_anchor_sets, on_step):
        found.append(watch.run(some_sets, keys.anchors, space_x.rows, space_y.rows, config, chunk))
    sets = jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)

    def first_map(key, rows_x, rows_y, sets, config):
        return initial_map(key, rows_x, rows_y, sets, config=config)

    on_step("matching", 0, 1)
    matrix, anchors = watch.run(first_map, keys.matching, space_x.rows, space_y.rows, sets, config)
    on_step("matching", 1, 1)

    trajectory = {}
    for name, num_steps, run in REFINEMENTS:
        if not num_steps(config):
            continue

        def some_steps(key, rows_x, rows_y, matrix, config, steps, run=run):
            return run(key, rows_x, rows_y, matrix, config=config, steps=steps)

        objective = []
        for chunk in _follow(name, num_steps(config), on_step):
            arguments = (getattr(keys, name), space_x.rows, space_y.rows, matrix, config, chunk)
            refined = watch.run(some_steps, *arguments)
            matrix = refined.matrix
            objective.append(refined.objective)
        trajectory[name] = jnp.concatenate(objective)

    def pack(key, space_x, space_y, matrix, sets, anchors, trajectory, config):
        return finish(key, space_x, space_y, matrix, sets, anchors, trajectory, config=config)

    result = watch.run(pack, keys.objective, space_x, space_y, matrix, sets, anchors, trajectory, config)
    return TimedFit(result=result, compile_seconds=watch.compile_seconds, seconds=watch.seconds)


def _follow(stage: str, num_steps: int, on_step: OnStep):
    """Chunks of a stage's steps, reporting each one done when the next is asked for."""
    done = 0
    on_step(stage, done, num_steps)
    for chunk in _chunks(num_steps):
        yield chunk
        done += len(chunk)
        on_step(stage, done, num_steps)
