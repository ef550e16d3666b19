"""How a command ends that fails: one sentence and an exit code for everything but a defect of this package."""

import contextlib
import os
import sys

import click

from mv2v_jax.cli.output import OutputClosed
from mv2v_jax.errors import InputError, first_line
from mv2v_jax.interrupts import INTERRUPTED, INTERRUPTED_EXIT

_INPUT_EXIT = 2
# What a shell reports of a program whose reader has gone away.
_BROKEN_PIPE_EXIT = 128 + 13
_NO_MEMORY = "the memory must hold what the command computes, found too little; use --preset fast or fewer rows"


def describe_failure(error: BaseException) -> tuple[str, int] | None:
    """Message and exit code of an error. The message is empty if the output is closed; ``None`` means a defect."""
    if isinstance(error, InputError):
        return str(error), _INPUT_EXIT
    if isinstance(error, click.ClickException):
        return _describe_usage(error), error.exit_code
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return INTERRUPTED, INTERRUPTED_EXIT
    if isinstance(error, OutputClosed):
        _discard_output()
        return "", _BROKEN_PIPE_EXIT
    if isinstance(error, OSError):
        place = error.filename or "a file or the output"
        _discard_output()
        return f"{place} must be readable and writable as needed, found: {error.strerror or error}", _INPUT_EXIT
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)):
        return _NO_MEMORY, _INPUT_EXIT
    if isinstance(error, (RuntimeError, AssertionError)):
        return _describe_devices()
    return None


def _discard_output() -> None:
    """Let nothing more be written, which Python would try at the end of the program and complain about."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _describe_devices() -> tuple[str, int] | None:
    """Where JAX finds no device, which it reports in several ways; ``None`` where it finds one."""
    import jax

    try:
        jax.devices()
    except Exception as error:
        found = first_line(error)
        advice = "set JAX_PLATFORMS to a platform that is there, such as cpu, or unset it"
        return f"JAX must find a device, found none: {found}; {advice}", _INPUT_EXIT
    return None


def _describe_usage(error: click.ClickException) -> str:
    """Click's own message and, for wrong usage, the command that describes the right one."""
    message = error.format_message()
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return message
    return f"{message}{'' if message.endswith(('.', '?', ')')) else '.'} See {error.ctx.command_path} --help."
