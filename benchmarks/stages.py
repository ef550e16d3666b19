"""The stages of a fit, each compiled by itself, timed and counted. They are the stages that `align` runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.common import Split, compile_seconds, steady_seconds
from benchmarks.work import Work, count_work
from mv2v_jax import AlignResult, Config
from mv2v_jax.alignment.fit import fit
from mv2v_jax.alignment.stage_by_stage import StageByStage
from mv2v_jax.data.inputs import prepare_inputs


class Stage(NamedTuple):
    """One stage as a fit ran it.

    Attributes:
        fun: what was compiled.
        args: what it was called with.
        num_steps: number of steps; ``None`` for a stage without steps.
        compile_seconds: seconds of tracing and compiling.
        seconds: median seconds of a call.
    """

    fun: Callable[..., Any]
    args: tuple[Any, ...]
    num_steps: int | None
    compile_seconds: float
    seconds: float

    def work(self) -> Work:
        """The work of one call."""
        return count_work(self.fun, *self.args)


class TimedStages(StageByStage):
    """A `Run` that compiles each stage in one piece and times it.

    Attributes:
        stages: `Stage` by name.
    """

    def __init__(self, repeats: int) -> None:
        super().__init__(lambda name, done, total: None)
        self.stages: dict[str, Stage] = {}
        self._repeats = repeats

    def execute(self, name: str, fun: Callable[..., Any], *args: Any, num_steps: int | None = None) -> Any:
        compiled, compiling = compile_seconds(fun, *args)
        result, steady = steady_seconds(compiled, *args, repeats=self._repeats)
        self.stages[name] = Stage(fun, args, num_steps, compiling, steady)
        return result

    def scan(self, name: str, fun: Callable[..., Any], carry: Any, num_steps: int, *args: Any) -> Any:
        return self.execute(name, fun, carry, jnp.arange(num_steps), *args, num_steps=num_steps)


def run_stages(key: jax.Array, split: Split, config: Config, repeats: int) -> tuple[dict[str, Stage], AlignResult]:
    """Fit as `align` does, stage by stage: every `Stage` by name, and the result."""
    run = TimedStages(repeats)
    x, y = prepare_inputs(key, split.x, split.y, config)
    result, _ = fit(run, key[None], x, y, config)
    return run.stages, result
