"""Builds the parts of the pages that follow from the code: settings of configs, and `--help` of every command.

A page asks for them by a comment on a line of its own: ``<!-- settings: Config -->`` or ``<!-- help: align -->``. The
module is also an extension of griffe, which reads the docstrings.
"""

import importlib
import math
import os
import re
import subprocess
import sys

import griffe
from mkdocs.exceptions import PluginError

from mv2v_jax.settings import Settings, iterate_fields

_MARK = re.compile(r"^<!-- (settings|help): ([\w.]+) -->$", re.MULTILINE)
# As wide as a page shows beside both sidebars.
_COLUMNS = "84"


def on_page_markdown(markdown: str, **_) -> str:
    """Replace every mark of a page by what it asks for."""
    builders = {"settings": _settings, "help": _help}
    return _MARK.sub(lambda found: builders[found[1]](found[2]), markdown)


def _settings(name: str) -> str:
    """One table per stage of a config, or one for a config without stages."""
    module, _, cls = f"mv2v_jax.{name}".rpartition(".")
    config = getattr(importlib.import_module(module), cls)()
    tables: dict[str, list[str]] = {}
    for path, field, value in iterate_fields(config):
        row = f"| `{path[-1]}` | `{value}` | {_bounds(field)} | {field.metadata['help']} |"
        tables.setdefault(".".join(path[:-1]), []).append(row)
    header = ["| setting | default | allowed | what it sets |", "|---|---|---|---|"]
    parts = []
    for stage, rows in tables.items():
        stage_config: Settings = getattr(config, stage) if stage else config
        if len(tables) > 1:
            what = (type(stage_config).__doc__ or "").split("\n")[0] if stage else "Settings of the whole fit."
            parts.append(f"### {stage or 'Top level'}\n\n{what}\n")
        parts.append("\n".join([*header, *rows]) + "\n")
    return "\n".join(parts)


def _bounds(field) -> str:
    if field.type is bool:
        return "true or false"
    kind = "whole number" if field.type is int else "number"
    low, high = field.metadata["low"], field.metadata["high"]
    return f"{kind}, {low:g} or more" if high in (2**31 - 1, math.inf) else f"{kind}, {low:g} to {high:g}"


def _help(command: str) -> str:
    arguments = [] if command == "mv2v" else [command]
    program = [sys.executable, "-m", "mv2v_jax", *arguments, "--help"]
    # A terminal of a fixed width and without colours, wherever the pages are built.
    environment = {**os.environ, "COLUMNS": _COLUMNS, "NO_COLOR": "1"}
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise PluginError(f"mv2v {command} --help failed:\n{done.stderr}")
    return f"```text\n{done.stdout.rstrip()}\n```\n"


class Examples(griffe.Extension):
    """Reads a docstring's section ``Example:`` as code. Griffe itself does so for ``Examples:`` only."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
