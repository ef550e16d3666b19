"""``--log-file``: what the library says through `logging`, kept in a file."""

import logging

from mv2v_jax.errors import InputError, first_line


def start_log(path: str) -> None:
    """Append the messages of this package to a file, with their time and level.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:
        raise InputError(f"--log-file: {path} cannot be written: {first_line(error)}; name another file") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("mv2v_jax")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
