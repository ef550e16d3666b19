"""The two frames of mapped rows, for all ways to apply a map."""

from typing import Literal, get_args

from mv2v_jax.errors import InputError

Frame = Literal["centred", "target"]


def check_frame(frame: str) -> None:
    """Raise `InputError` unless this is a `Frame`."""
    if frame not in get_args(Frame):
        raise InputError(f'frame must be "centred" or "target", found {frame!r}')
