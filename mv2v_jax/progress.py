"""How much of a whole job is done, from what its stages report one by one; and one bar that shows it."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from mv2v_jax.errors import import_extra

OnStep = Callable[[str, int, int], None]

# A stage that is reported under this name is being compiled; its steps come later, under its own name.
COMPILING = "compiling "
# Cost of a stage that is not expected, such as one of the second search, in steps of the annealed refinement.
_UNEXPECTED = 10.0


class Share(NamedTuple):
    """How much is done, and how much is to do, in the same unit."""

    done: float
    total: float


class Overall:
    """Adds up the stages of a job.

    Args:
        expected: the stages that will come, and the cost of each; empty where only the current stage counts.

    Example:
        >>> overall = Overall({"search": 3.0, "settling": 1.0})
        >>> overall.update("search", 1, 2), overall.update("settling", 1, 1)
        (Share(done=1.5, total=4.0), Share(done=4.0, total=4.0))
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        self._costs = dict(expected)
        self._places = {stage: place for place, stage in enumerate(expected)}
        self._done: dict[str, float] = {}

    def update(self, stage: str, done: int, total: int) -> Share:
        """The share after ``done`` of the ``total`` steps of a stage; earlier stages are done by then."""
        if not self._places:
            return Share(done, total)
        if not stage.startswith(COMPILING):
            self._costs.setdefault(stage, _UNEXPECTED)
            self._done[stage] = self._costs[stage] * done / max(1, total)
            for earlier, place in self._places.items():
                if place < self._places.get(stage, -1):
                    self._done[earlier] = self._costs[earlier]
        return Share(math.fsum(self._done.values()), math.fsum(self._costs.values()))


@contextlib.contextmanager
def show_progress(
    expected: Mapping[str, float] | None = None, printable: Callable[[str], str] = str
) -> Iterator[OnStep]:
    """One bar: the current stage, how much of the whole is done, the time passed and the time left.

    It goes when it is done, and there is none if standard error is neither a terminal nor a notebook.

    Args:
        expected: the stages of the whole and their costs; without them the bar is about the current stage.
        printable: what a name of a stage is shown as.
    """
    rich = import_extra("rich.progress", "cli", "a progress bar")
    overall = Overall(expected or {})
    texts = [rich.TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[speed]}", "left:")]
    columns = (texts[0], rich.BarColumn(), rich.TaskProgressColumn(), texts[1], rich.TimeElapsedColumn(), texts[2])
    console = rich.Console(stderr=True)
    # Not console.is_terminal, which FORCE_COLOR makes true for a pipe as well.
    is_shown = sys.stderr.isatty() or console.is_jupyter
    shown = rich.Progress(*columns, rich.TimeRemainingColumn(), console=console, disable=not is_shown, transient=True)
    with shown as bars:
        task = bars.add_task("", total=None, speed="")

        def on_step(stage: str, done: int, total: int) -> None:
            name = printable(stage.replace("_", " "))
            if stage.startswith(COMPILING):
                bars.update(task, description=name)
                return
            share, speed = overall.update(stage, done, total), bars.tasks[task].speed
            counts_rows = stage.startswith("rows ") and speed is not None
            bars.update(
                task,
                description=f"{name} {done:,}/{total:,}",
                completed=share.done,
                total=share.total,
                speed=f"{speed:,.0f} rows/s" if counts_rows else "",
            )

        yield on_step
