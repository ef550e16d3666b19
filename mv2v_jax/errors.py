"""The one error that people get for what they gave, and the one warning."""

import importlib
from types import ModuleType


class InputError(ValueError):
    """Something a user gave cannot be used; one sentence says what was expected and what was found."""


class AlignmentWarning(UserWarning):
    """A map is not called ``aligned``: check it on true pairs before you use it."""


def first_line(error: BaseException) -> str:
    """What the system says, the first line of an error's message, or its name where it has none."""
    return getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]


def import_extra(package: str, extra: str, needed_by: str) -> ModuleType:
    """Import a package that only an extra installs.

    Args:
        package: name to import.
        extra: the extra of this project that installs it.
        needed_by: what needs it, the subject of the error's sentence.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f'{needed_by} needs {package}: pip install "mv2v_jax[{extra}]"') from error
