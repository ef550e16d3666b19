"""What people see on a terminal: a progress bar on standard error, tables on standard output."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from mv2v_jax.runs.compiled import OnStep


@contextlib.contextmanager
def progress_bar() -> Iterator[OnStep]:
    """A bar per stage with its step and the time left; nothing at all where standard error is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Not console.is_terminal, which FORCE_COLOR makes true for a pipe as well.
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, TaskID] = {}

        def on_step(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage.replace("_", " "), total=total)
            bars.update(tasks[stage], completed=done)

        yield on_step


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table whose first column is text and whose others are figures."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console()
    # A pipe has no width of its own; the default of 80 columns would cut figures off.
    (console if console.is_terminal else Console(width=160)).print(table)


def print_facts(facts: Mapping[str, Any]) -> None:
    """One fact a line, names aligned."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name:<{width}}  {f'{value:.5g}' if isinstance(value, float) else value}")


def describe_verdict(judged: Mapping[str, Any]) -> str:
    """The verdict in one sentence that someone can act on."""
    sure = f"confidence {judged['confidence']:.2f}"
    if judged["verdict"] == "aligned":
        return (
            f"aligned ({sure}): about {judged['estimated_top1']:.0%} of rows should find their true partner first "
            "among some thousands; check a few pairs if you have any."
        )
    advice = (
        "try more restarts (--restarts 8) and more rows of the same kind of text, and do not use the map before you "
        "have checked some true pairs."
    )
    if judged["verdict"] == "uncertain":
        return f"uncertain ({sure}) whether the spaces were aligned: {advice}"
    return (
        f"not aligned ({sure}): held-out rows land hardly nearer to the other space than chance, or restarts disagree; "
        f"{advice}"
    )
