"""A fit whose stages are compiled one by one, so that a program can show its progress.

`mv2v_jax.align_restarts` is one compiled function and stays silent until it is done, unless ``progress`` is given.
`StageByStage` runs the same `fit` with each stage compiled by itself and the long ones in chunks of steps, with the
same keys. The result is the same up to rounding, no compiled function calls back, and compiling is timed apart from
running.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.alignment.api import Keep, Restarts, fit_in_stages, fit_restarts, prepare_restarts
from mv2v_jax.alignment.stage_by_stage import StageByStage
from mv2v_jax.config import Config
from mv2v_jax.progress import COMPILING, OnStep

_logger = logging.getLogger(__name__)


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
    run = StageByStage(on_step, get_compiled)
    result = fit_in_stages(run, key, x, y, config, num_restarts, num_settled=num_settled, pairs=pairs, keep=keep)
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
    on_step(f"{COMPILING}fit", 0, 1)
    started = time.perf_counter()
    compiled = fit_restarts.lower(key, x, y, config, **choices).compile()
    ready = time.perf_counter()
    _logger.info("compiled fit in %.2f s", ready - started)
    on_step("fit", 0, 1)
    result = jax.tree.map(np.asarray, compiled(key, x, y, config))
    on_step("fit", 1, 1)
    return TimedFit(result=result, compile_seconds=ready - started, seconds=time.perf_counter() - ready)
