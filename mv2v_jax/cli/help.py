"""`--help` in sections: arguments and examples first, then everyday options, then the settings of the algorithm.

Nothing here imports JAX, so that ``mv2v --help`` answers at once.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from mv2v_jax.cli.output import OutputClosed, wrap
from mv2v_jax.interrupts import ending_at_interrupts

_EVERYDAY = "Options"
# Wider terms have their description on the next line.
_MAX_TERM = 30
_ADVANCED = "The settings of the algorithm. A setting given here replaces the value of the preset."


class Formatter(click.HelpFormatter):
    """Click's formatter, except that it breaks lines at spaces only: no flag is torn apart at its hyphens."""

    def write_text(self, text: str) -> None:
        """Write paragraphs."""
        indent = " " * self.current_indent
        paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        self.write("\n\n".join(wrap(text, self.width, first=indent, rest=indent) for text in paragraphs) + "\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = _MAX_TERM, col_spacing: int = 2) -> None:
        """Write terms with their descriptions beside them."""
        rows = list(rows)
        indent = " " * self.current_indent
        column = min(max(len(term) for term, _ in rows), col_max) + col_spacing
        rest = indent + " " * column
        for term, description in rows:
            fits = len(term) + col_spacing <= column
            if not fits:
                self.write(f"{indent}{term}\n")
            first = indent + f"{term:<{column}}" if fits else rest
            self.write(wrap(description, self.width, first=first, rest=rest).rstrip() + "\n")


class Context(click.Context):
    """A context whose help is written by `Formatter`."""

    formatter_class = Formatter


class Option(click.Option):
    """An option and the section of the help that it belongs to.

    Attributes:
        section: heading.
        advanced: whether the section is one of the algorithm's settings.
    """

    def __init__(self, *args: Any, section: str = _EVERYDAY, advanced: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section, self.advanced = section, advanced

    def get_help_extra(self, ctx: click.Context) -> Any:
        """Default, environment variable and whether it is required; bounds are named by the error only."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


def _write_options(parameters: Iterable[click.Parameter], context: click.Context, formatter: click.HelpFormatter):
    """One section per heading, in the order of the first option of each."""
    sections: dict[tuple[bool, str], list[tuple[str, str]]] = {(False, _EVERYDAY): []}
    for parameter in parameters:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            section = getattr(parameter, "section", _EVERYDAY)
            sections.setdefault((getattr(parameter, "advanced", False), section), []).append(record)
    for (advanced, heading), records in sections.items():
        if not advanced:
            with formatter.section(heading):
                formatter.write_dl(records)
    if any(advanced for advanced, _ in sections):
        with formatter.section("Advanced"):
            formatter.write_text(_ADVANCED)
            for (advanced, heading), records in sections.items():
                if advanced:
                    with formatter.section(heading):
                        formatter.write_dl(records)


class _Sections(click.Command):
    """What commands and the group have in common.

    Attributes:
        arguments: description of each argument, by its name in the usage line.
        examples: commands that can be copied, each a line; lines that begin with ``#`` say what the next one does.
    """

    context_class = Context

    def __init__(
        self, *args: Any, arguments: Mapping[str, str] | None = None, examples: Sequence[str], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.arguments, self.examples = arguments or {}, examples

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all sections."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        if self.arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(list(self.arguments.items()))
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        self.format_options(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by their sections."""
        _write_options(self.get_params(ctx), ctx, formatter)


class Lost(click.ClickException):
    """Another process of the run is gone."""

    exit_code = 4


class Command(_Sections):
    """A command with arguments, examples and options in sections."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and keep what it compiles; raises `Lost` where it needs a process that is gone."""
        from mv2v_jax.cli.shared import use_cache
        from mv2v_jax.runs.processes import LostProcess, translate_process_loss

        use_cache(ctx.obj)
        try:
            with translate_process_loss():
                return super().invoke(ctx)
        except LostProcess as error:
            raise Lost(str(error)) from error


class Group(_Sections, click.Group):
    """A group of commands; ``name_command`` of the module ``name`` is imported when the command is used.

    Attributes:
        summaries: the first sentence of each command's help by its name, in the order in which they are listed.
    """

    def __init__(self, *args: Any, summaries: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.summaries = summaries

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what click ends the program for by itself is raised as errors of ours."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.Abort from error
        except BrokenPipeError as error:
            raise OutputClosed from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return list(self.summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, if there is one."""
        if cmd_name not in self.summaries:
            return None
        with ending_at_interrupts():
            module = cmd_name.replace("-", "_")
            return getattr(importlib.import_module(f"mv2v_jax.cli.{module}"), f"{module}_command")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the options."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.summaries.items()))
        super().format_options(ctx, formatter)
