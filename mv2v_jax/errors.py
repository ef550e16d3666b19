"""The one error that people get for what they gave."""


class InputError(ValueError):
    """Something a user gave cannot be used; one sentence says what was expected and what was found."""


def first_line(error: Exception) -> str:
    """What the system says, the first line of an error's message, or its name where it has none."""
    return getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
