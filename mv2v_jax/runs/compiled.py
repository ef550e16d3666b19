"""A fit whose stages are compiled one by one, so that a program can show its progress.

`mv2v_jax.align_restarts` is one compiled function and stays silent until it is done, unless ``progress`` is given.
`StageByStage` runs the same `fit` with each stage compiled by itself and the long ones in chunks of steps, with the
same keys. The result is the same up to rounding, no compiled function calls back, and compiling is timed apart from
running.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from mv2v_jax.alignment.api import Keep, Restarts, fit_in_stages, prepare_restarts
from mv2v_jax.config import Config
from mv2v_jax.progress import OnStep


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
    mesh: Mesh | None = None,
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
        mesh: as for `align_restarts`; whole searches are reported then.

    Raises:
        InputError: as `align_restarts`.
    """
    x, y, choices = prepare_restarts(
        key, x, y, config, num_restarts=num_restarts, num_settled=num_settled, mesh=mesh, pairs=pairs, keep=keep
    )
    result, run = fit_in_stages(on_step, key, x, y, config, choices, get_compiled)
    return TimedFit(result=result, compile_seconds=run.compile_seconds, seconds=run.seconds)
