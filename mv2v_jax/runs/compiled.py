"""The same fit in separately compiled pieces, so that a program can show how far it is.

`mv2v_jax.align_restarts` is one compiled function and stays silent until it is done. Here its stages are compiled one
by one and the long ones run in chunks of steps, with the same keys: the result is the same up to rounding, no compiled
function calls back, and compiling is timed apart from running.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.alignment.anchors import AnchorSets, match_anchor_sets
from mv2v_jax.alignment.fit import (
    REFINEMENTS,
    SETTLING,
    Keys,
    Refinement,
    Searched,
    SearchRows,
    finish,
    initial_map,
    lift_search,
    prepare_search,
    split_keys,
    weigh,
)
from mv2v_jax.alignment.restarts import (
    Restarts,
    average,
    check_restarts,
    choose,
    fit_restarts,
    num_averaged,
    ready_restarts,
    restart_keys,
)
from mv2v_jax.alignment.seeds import pair_seeds
from mv2v_jax.alignment.space import fit_space
from mv2v_jax.config import Config, check_config
from mv2v_jax.data.checks import check_fitting_rows, check_pairs
from mv2v_jax.data.padding import pad_rows

OnStep = Callable[[str, int, int], None]


class TimedFit(NamedTuple):
    """A fit and what it took.

    Attributes:
        result: `Restarts`.
        compile_seconds: tracing and compiling, all stages.
        seconds: running, all stages: the steady time of the fit.
    """

    result: Restarts
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


def _some_sets(key, rows, config, sets):
    return match_anchor_sets(key, rows.x.fitted, rows.y.fitted, config=config, sets=sets, known=rows.known)


def _first_matrix(key, rows, sets, config):
    return initial_map(key, rows.x.fitted, rows.y.fitted, sets, config=config, known=rows.known)


def _search_rows(space_x, space_y, config):
    return prepare_search(space_x, space_y, config=config)


def _searched(key, rows, matrix, trajectory, sets, anchors, config):
    return weigh(key, rows, matrix, trajectory, sets, anchors, config=config)


def _choose(searches, rows_x, config):
    return choose(searches, rows_x, config=config)


def _average(matrices, weights):
    return average(jnp.stack(matrices), weights)


def _finish(space_x, space_y, matrix, searched, trajectory, agreement, config):
    return finish(space_x, space_y, matrix, searched, trajectory, agreement, config=config)


class _Fit:
    """One call of `align_with_progress`: what its pieces share."""

    def __init__(self, config: Config, on_step: OnStep) -> None:
        self.config, self.on_step, self.watch = config, on_step, _Stopwatch()
        self._steps: dict[str, Callable[..., Any]] = {}

    def _run_steps(self, stage: Refinement) -> Callable[..., Any]:
        """One function a stage, so that all restarts share its compilation."""

        def some_steps(key, rows_x, rows_y, matrix, config, known, steps):
            return stage.run(key, rows_x, rows_y, matrix, config=config, steps=steps, known=known)

        return self._steps.setdefault(stage.name, some_steps)

    def refine(self, keys: Keys, stages: tuple[Refinement, ...], rows_x, rows_y, matrix, known, label: str):
        """As `pipeline.refine`, in chunks of steps."""
        trajectory = {}
        for stage in stages:
            num_steps = stage.num_steps(self.config, min(rows_x.shape[0], rows_y.shape[0]))
            if not num_steps:
                continue
            objective = []
            for chunk in _follow(label + stage.name, num_steps, self.on_step):
                arguments = (getattr(keys, stage.name), rows_x, rows_y, matrix, self.config, known, chunk)
                refined = self.watch.run(self._run_steps(stage), *arguments)
                matrix = refined.matrix
                objective.append(refined.objective)
            trajectory[stage.name] = jnp.concatenate(objective)
        return matrix, trajectory

    def search(self, key: jax.Array, rows: SearchRows, label: str) -> Searched:
        """As `pipeline.search_map`."""
        keys, config = split_keys(key), self.config
        found: list[AnchorSets] = []
        for chunk in _follow(f"{label}anchors", config.num_anchor_sets, self.on_step):
            found.append(self.watch.run(_some_sets, keys.anchors, rows, config, chunk))
        sets = jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
        matrix, anchors = self.watch.run(_first_matrix, keys.matching, rows, sets, config)
        fitted = rows.x.fitted, rows.y.fitted
        matrix, trajectory = self.refine(keys, REFINEMENTS, *fitted, matrix, rows.known, label)
        return self.watch.run(_searched, keys.evidence, rows, matrix, trajectory, sets, anchors, config)


def align_with_progress(
    key: jax.Array,
    x: Any,
    y: Any,
    config: Config,
    on_step: OnStep,
    num_restarts: int = 1,
    num_settled: int = 1,
    pairs: tuple[Any, Any] | None = None,
) -> TimedFit:
    """Fit as `mv2v_jax.align_restarts` does, telling ``on_step(stage, done, total)`` after every chunk.

    Args:
        key: random key.
        x: ``[n, d_x]`` raw rows of the source.
        y: ``[m, d_y]`` raw rows of the target.
        config: as for `align_restarts`.
        on_step: called on the host with a stage's name, the steps done and the steps to do.
        num_restarts: as for `align_restarts`.
        num_settled: as for `align_restarts`.
        pairs: as for `align_restarts`.

    Raises:
        InputError: as `align_restarts`.
    """
    check_config(config)
    x, y = (check_fitting_rows(rows, name, config) for rows, name in ((x, "x"), (y, "y")))
    check_restarts(num_restarts, min(x.shape[0], y.shape[0]), config, num_settled)
    known = check_pairs(pairs, x, y)
    x, y = (pad_rows(rows, config.max_rows, known=side) for rows, side in zip((x, y), known, strict=True))
    fit = _Fit(config, on_step)
    watch = fit.watch
    on_step("preprocess", 0, 1)
    space_x, space_y = watch.run(fit_space, *x), watch.run(fit_space, *y)
    rows = watch.run(_search_rows, space_x, space_y, config)
    on_step("preprocess", 1, 1)

    keys = restart_keys(key, 0, num_restarts)
    searches = [
        fit.search(restart, rows, f"restart {index + 1} " if num_restarts > 1 else "")
        for index, restart in enumerate(keys)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *searches)
    choice = watch.run(_choose, stacked, rows.x.fitted, config)
    order = choice.order[: num_averaged(num_settled, num_restarts, config)]
    spaces, whole_known = (space_x.rows, space_y.rows), pair_seeds(space_x.known, space_y.known)
    settled = []
    for place, index in enumerate(map(int, order)):
        matrix = watch.run(lift_search, searches[index].matrix, rows)
        label = f"settling {place + 1} " if len(order) > 1 else ""
        settled.append(fit.refine(split_keys(keys[index]), SETTLING, *spaces, matrix, whole_known, label))
    matrix = watch.run(_average, [matrix for matrix, _ in settled], choice.weights[order])
    best, trajectory = searches[int(choice.chosen)], settled[0][1]
    result = watch.run(_finish, space_x, space_y, matrix, best, trajectory, choice.with_others, config)
    restarts = Restarts(
        best=result,
        chosen=choice.chosen,
        evidence=stacked.evidence,
        agreement=choice.agreement,
        trajectory=stacked.trajectory,
        maps=None,
    )
    return TimedFit(result=restarts, compile_seconds=watch.compile_seconds, seconds=watch.seconds)


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
) -> TimedFit:
    """Fit as `mv2v_jax.align_restarts` does over a mesh, in one piece; ``on_step`` hears of its two ends.

    Arguments as for `align_with_progress`; every process of the mesh calls this together.
    """
    x, y, choices = ready_restarts(
        x, y, config, num_restarts=num_restarts, num_settled=num_settled, mesh=mesh, pairs=pairs
    )
    on_step("fit", 0, 1)
    started = time.perf_counter()
    compiled = fit_restarts.lower(key, x, y, config, **choices).compile()
    ready = time.perf_counter()
    result = jax.tree.map(np.asarray, compiled(key, x, y, config))
    on_step("fit", 1, 1)
    return TimedFit(result=result, compile_seconds=ready - started, seconds=time.perf_counter() - ready)


def _follow(stage: str, num_steps: int, on_step: OnStep):
    """Chunks of a stage's steps, reporting each one done when the next is asked for."""
    done = 0
    on_step(stage, done, num_steps)
    for chunk in _chunks(num_steps):
        yield chunk
        done += len(chunk)
        on_step(stage, done, num_steps)
