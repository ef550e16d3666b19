"""``--log-file``: what the library says through `logging`, kept in a file."""

import logging
import re
from pathlib import Path

from mv2v_jax.errors import InputError, first_line

# How the lines below begin: with the date.
_BEGINNING = re.compile(rb"\d{4}-\d\d-\d\d ")


def _check_is_log(path: str) -> None:
    try:
        with Path(path).open("rb") as file:
            beginning = file.read(11)
    except (OSError, ValueError):
        return
    if beginning and not _BEGINNING.match(beginning):
        raise InputError(f"--log-file: {path} holds something else than a log; name another file")


def start_log(path: str) -> None:
    """Append the messages of this package to a file, with their time and level.

    Raises:
        InputError: the file cannot be written, or is no log: it could be an input of the command.
    """
    _check_is_log(path)
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:
        raise InputError(f"--log-file: {path} cannot be written: {first_line(error)}; name another file") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("mv2v_jax")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
