"""The one error that people get for what they gave."""


class InputError(ValueError):
    """Something a user gave cannot be used; one sentence says what was expected and what was found."""
