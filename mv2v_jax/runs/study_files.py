"""The folder of a study: its manifest, the files of finished searches, and its results."""

import csv
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from mv2v_jax.data.atomic_files import atomic_path, lock_alone
from mv2v_jax.data.tensor_files import save_tensors
from mv2v_jax.errors import InputError, first_line
from mv2v_jax.paths import is_file, is_folder, list_folder

_MANIFEST, _CHUNKS = "study.json", "chunks"


def open_study(folder: Path, made_by: dict[str, Any], *, resume: bool) -> BinaryIO:
    """Make the folder of a study, or check that it holds the same study and remove unfinished files.

    Args:
        folder: the folder.
        made_by: everything that the result depends on; values that JSON can hold. Kept in the manifest.
        resume: whether the folder may hold the study already.

    Returns:
        The open manifest: until it is closed, no other process can open the study.

    Raises:
        InputError: another process runs the study, the folder holds a study and ``resume`` is false, or it holds a
            study made by something else, or other files, or it cannot be written.
    """
    manifest, chunks = folder / _MANIFEST, folder / _CHUNKS
    if is_file(manifest):
        try:
            found = json.loads(manifest.read_text())
        except ValueError as error:
            raise InputError(
                f"{manifest} must be the manifest of a study, found damaged JSON; use another folder"
            ) from error
        if found != made_by:
            other = sorted(name for name in made_by if found.get(name) != made_by[name])
            raise InputError(f"{folder} holds a study with another {', '.join(other)}; use another folder")
        if not resume:
            raise InputError(f"{folder} holds a study already; continue it with --resume or use another folder")
    elif is_folder(folder) and any(not _is_unfinished(path) for path in list_folder(folder)):
        raise InputError(f"{folder} must be empty or hold a study, found other files; use another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not is_file(manifest):
            # The manifest comes first: after a kill, a folder with chunks but no manifest would not be a study.
            with atomic_path(manifest) as temporary:
                temporary.write_text(json.dumps(made_by))
        held = _hold(manifest)
        chunks.mkdir(exist_ok=True)
        for path in (*list_folder(folder), *list_folder(chunks)):
            if _is_unfinished(path):
                path.unlink()
        return held
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}") from error


def _hold(manifest: Path) -> BinaryIO:
    """Open the manifest and lock it, which leaves no file behind whatever happens to the process."""
    file = manifest.open("rb")
    if not lock_alone(file, manifest):
        file.close()
        raise InputError(f"{manifest.parent} is being written by another process; wait for it or use another folder")
    return file


def _is_unfinished(path: Path) -> bool:
    """Whether a killed process left this file half-written."""
    return path.name.startswith(".") and path.name.endswith(".part")


def chunk_path(folder: Path, part: str, first: int) -> Path:
    """The file of the searches of one chunk, the first of which is search ``first`` of a part of the study."""
    return folder / _CHUNKS / f"{part}-{first:06d}.safetensors"


def save_arrays(path: Path, arrays: list[np.ndarray]) -> None:
    """Write arrays as safetensors, named by their numbers, whole or not at all."""
    save_tensors(path, {str(number): array for number, array in enumerate(arrays)})


def load_arrays(path: Path, shapes: list[tuple[tuple[int, ...], Any]]) -> list[np.ndarray]:
    """Read the arrays that `save_arrays` wrote; their shapes and dtypes must be ``shapes``.

    Raises:
        InputError: the file is damaged, or holds arrays of other shapes or dtypes.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = [file.get_tensor(str(number)) for number in range(len(shapes))]
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({first_line(error)}); remove it and resume") from error
    if [(array.shape, array.dtype) for array in arrays] != [(shape, np.dtype(dtype)) for shape, dtype in shapes]:
        raise InputError(f"{path} must hold searches of this study, found other shapes; remove it and resume")
    return arrays


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write facts as JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of the same columns as CSV, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
