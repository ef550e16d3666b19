"""The file that keeps the progress of a move, and the lock beside it."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mv2v_jax.data.atomic_files import lock_alone
from mv2v_jax.data.map_tensors import TENSOR_NAMES
from mv2v_jax.errors import InputError
from mv2v_jax.paths import exists
from mv2v_jax.portable.numpy_map import PortableMap


@dataclasses.dataclass
class State:
    """What is known of a move, in a file that is replaced as a whole."""

    path: Path
    made_by: dict[str, Any]
    unit: bool = False
    written: int = 0

    def save(self) -> None:
        new = self.path.with_name(f"{self.path.name}.new")
        with new.open("w", encoding="utf-8") as file:
            json.dump({"made_by": self.made_by, "unit": self.unit, "written": self.written}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)

    def refuse_other_files(self) -> None:
        """Raise `InputError` if another kind of file has the name: it would be overwritten."""
        if not exists(self.path):
            return
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or not {"made_by", "written"} <= found.keys():
            raise InputError(f"{self.path} must be new or of an earlier move, found another file; name another one")

    def load(self) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            made_by, self.unit, self.written = found["made_by"], bool(found["unit"]), int(found["written"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path} must describe an unfinished move, found none; leave --resume out") from error
        if made_by != self.made_by:
            other = ", ".join(name for name, value in self.made_by.items() if made_by.get(name) != value)
            raise InputError(f"{self.path} describes a move with another {other}; name another file by --state")


@contextlib.contextmanager
def hold(state_file: Path, target: str) -> Iterator[None]:
    """Keep other processes from running the same move inside the block.

    The state is replaced as a whole, so the lock is on a file beside it. The system releases it however the process
    ends; a file that a killed process left locks nothing.

    Raises:
        InputError: another process holds the lock, or there can be no file of that name.
    """
    path = state_file.with_name(f"{state_file.name}.lock")
    try:
        file = path.open("ab")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    with file:
        if not lock_alone(file, path):
            raise InputError(
                f"{target} must be written by one process, found another one that runs this move and holds {path}; "
                "wait until it has ended"
            )
        try:
            yield
        finally:
            # While it is open, Windows keeps it.
            with contextlib.suppress(OSError):
                path.unlink()


def default_state(source: str, target: str) -> Path:
    """The file that keeps the progress of a move, in the current folder."""
    name = hashlib.sha256(f"{source}\n{target}".encode()).hexdigest()[:12]
    return Path(f".mv2v-move-{name}.json")


def fingerprint(linear_map: PortableMap) -> str:
    """SHA-256 of the arrays of a map."""
    found = hashlib.sha256()
    for name in TENSOR_NAMES:
        found.update(np.ascontiguousarray(getattr(linear_map, name)).tobytes())
    return found.hexdigest()
