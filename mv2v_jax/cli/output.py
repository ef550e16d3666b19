"""Everything that is printed: text wrapped by the terminal's width, commands, facts, tables and the progress bar.

Only a terminal has an edge: where a stream is a file or a pipe, every sentence and every fact stays on one line.
"""

import contextlib
import io
import logging
import os
import shlex
import sys
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from mv2v_jax.progress import OnStep, show_progress

# Rich is imported where it is used, so that `mv2v --help` answers at once.
_logger = logging.getLogger(__name__)
_DEFAULT_COLUMNS = 80
# Control characters, invisible ones such as those that turn the direction of text, halves of characters, separators.
_CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Some scripts are spelled with these.
_JOINERS = "\u200c\u200d"


class OutputClosed(Exception):
    """The reader of standard output is gone, such as ``head``."""


def wrap(text: str, width: int | None, *, first: str = "", rest: str = "") -> str:
    """Text in lines of at most ``width`` columns, broken at spaces only; a longer word has a line of its own.

    Args:
        text: one paragraph.
        width: number of columns, those of the indents included; ``None`` for one line.
        first: indent of the first line.
        rest: indent of the other lines.
    """
    if width is None:
        return first + text
    return textwrap.fill(
        text,
        max(width, len(rest) + 1),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def stream_width(stream: TextIO) -> int | None:
    """Columns of the terminal that a stream writes to; ``None`` if it is not a terminal."""
    if not stream.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _DEFAULT_COLUMNS
    except OSError:
        return _DEFAULT_COLUMNS


def printable(text: str) -> str:
    r"""Text in which characters that control a terminal, or turn the direction of text, are written as escapes.

    Names of files and columns and the metadata of maps come from others, and could hide or rewrite what is printed.

    Example:
        >>> printable("map\x1b[2J.safetensors")
        'map\\x1b[2J.safetensors'
    """
    return "".join(
        repr(sign)[1:-1] if unicodedata.category(sign) in _CONTROLS and sign not in _JOINERS else sign for sign in text
    )


def survive_encodings() -> None:
    """Let the streams write characters that their encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_text(text: str = "", *, to_stderr: bool = False) -> None:
    """Print one paragraph; what goes to standard error is logged as well."""
    if to_stderr:
        _logger.warning("%s", text)
    stream = sys.stderr if to_stderr else sys.stdout
    print(wrap(printable(text), stream_width(stream)), file=stream, flush=to_stderr)


def print_command(*arguments: Any) -> None:
    """Print a command that can be copied into a shell, indented; a long one is continued by backslashes."""
    words, width = [printable(shlex.quote(str(argument))) for argument in arguments], stream_width(sys.stdout)
    lines = [f"  {words[0]}"]
    for word in words[1:]:
        # Two columns are left for the backslash.
        if width is not None and len(lines[-1]) + 1 + len(word) > width - 2:
            lines.append(f"      {word}")
        else:
            lines[-1] += f" {word}"
    print(" \\\n".join(lines))


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print one fact per line, with the names aligned."""
    width, indent = stream_width(sys.stdout), 2 + max(len(printable(name)) for name in facts)
    for name, value in facts.items():
        text, name = printable(_format(value)), printable(name)
        first = f"{name:<{indent}}"
        if width is not None and max(map(len, text.split()), default=0) > width - indent:
            # A word that does not fit beside the name gets the next line.
            print(name)
            first = rest = "  "
        else:
            rest = " " * indent
        # A path is one word, whatever is in it.
        print(wrap(text, None if isinstance(value, os.PathLike) else width, first=first, rest=rest))


def _format(value: Any, *, inner: bool = False) -> str:
    """A fact as text: five digits of every float, also in lists and mappings."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_format, value))}]"
    if isinstance(value, dict):
        text = ", ".join(f"{name} {_format(entry, inner=True)}" for name, entry in value.items())
        return f"({text})" if inner else text
    return str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, notes: bool = False) -> None:
    """Print a table whose first column is text and whose others are figures.

    Args:
        columns: headings.
        rows: one cell per column.
        notes: whether the last column is text, which may take several lines.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for index, column in enumerate(columns):
        is_note = notes and index == len(columns) - 1
        table.add_column(column, justify="right" if index and not is_note else "left", no_wrap=not is_note)
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else printable(str(cell)) for cell in row))
    width = stream_width(sys.stdout)
    # A pipe has no width of its own; the default of 80 columns would cut figures off.
    console = Console(width=160 if width is None else width, markup=False, emoji=False)
    # Rich itself would end the program with 1 where the reader of the output is gone.
    with console.capture() as captured:
        console.print(table)
    print(captured.get(), end="")


def progress_bar(expected: Mapping[str, float] | None = None) -> contextlib.AbstractContextManager[OnStep]:
    """`show_progress` for names that may hold anything."""
    return show_progress(expected, printable)
