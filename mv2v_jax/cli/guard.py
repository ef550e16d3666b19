"""Do rows come from the space that a map was fitted on? Asked by every command that maps rows."""

from typing import Any

from mv2v_jax.cli.options import flag
from mv2v_jax.cli.output import print_text
from mv2v_jax.errors import InputError
from mv2v_jax.profiles.mismatch import find_mismatch
from mv2v_jax.profiles.profile import Profiles

strict_option = flag(
    "--strict",
    help="Refuse rows that do not look like those that the map was fitted on, instead of a warning: rows of another "
    "encoder or of the other side, in another scale, or truncated.",
)


def guard_rows(profiles: Profiles, map_file: str, rows: Any, name: str, *, inverse: bool, strict: bool) -> None:
    """Warn, or refuse if ``strict``, where rows do not look like those that a map was fitted on.

    Args:
        profiles: of source and target, as the map remembers them.
        map_file: file of the map, for messages.
        rows: raw rows of the source, of the target with ``inverse``; at most 2,048 of them are read.
        name: what a message calls the rows.
        inverse: whether the map is used from the target to the source.
        strict: refuse instead of warning.

    Raises:
        InputError: ``strict``, and the rows are unlike, or the map has no profile.
    """
    profile, other = profiles[::-1] if inverse else profiles
    side = "target" if inverse else "source"
    if profile is None:
        if strict:
            raise InputError(
                f"--strict needs a map that remembers its {side}, found none in {map_file}; fit it again from at least "
                "200 rows, or leave --strict out"
            )
        return
    mismatch = find_mismatch(profile, rows, other)
    if mismatch is None:
        return
    if strict:
        raise InputError(f"{name} must hold rows like the {side} of {map_file}, found {mismatch}")
    print_text(f"Warning: {name} does not look like the {side} of {map_file}: found {mismatch}.", to_stderr=True)
