"""What is at a path, where the answer "this cannot be found out" is an `InputError` and not an error of the system."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mv2v_jax.errors import InputError, first_line

_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR)


@contextlib.contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Raise `InputError` in place of an error of the system: a folder not to be entered, a name too long."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        # ValueError: a name with a null character.
        raise InputError(f"{path} cannot be reached: {first_line(error)}") from error


def _mode(path: Path) -> int:
    """The mode of what is there, links followed; 0 where nothing is."""
    with reaching(path):
        try:
            return os.stat(path).st_mode
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return 0
            raise


def exists(path: Path) -> bool:
    """Whether anything is there."""
    return _mode(path) != 0


def is_file(path: Path) -> bool:
    """Whether a regular file is there."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether a folder is there."""
    return stat.S_ISDIR(_mode(path))


def list_folder(folder: Path) -> list[Path]:
    """Everything in a folder, in no order."""
    with reaching(folder):
        return list(folder.iterdir())
