"""What a command may write over: never an input, and never under the name of another format."""

from collections.abc import Iterable
from pathlib import Path

from mv2v_jax.errors import InputError
from mv2v_jax.paths import exists, is_folder, list_folder, reaching


def check_suffix(output: Path, *suffixes: str) -> None:
    """Raise `InputError` unless ``output`` ends in one of ``suffixes``: the bytes must be what the name promises."""
    if output.suffix.lower() not in suffixes:
        expected = f"{suffixes[0]}, the format that" if len(suffixes) == 1 else f"one of {', '.join(suffixes)}, which"
        raise InputError(f"{output} must end in {expected} is written; found {output.name!r}")


def check_apart(output: Path, sources: Iterable[Path]) -> None:
    """Raise `InputError` if writing ``output`` could overwrite, or add to, what is read.

    Args:
        output: a file or folder to write, which may exist.
        sources: the files and folders that are read. Links, hard links and other spellings of a path are seen through.
    """
    for source in sources:
        if not exists(source):
            # Whatever opens it reports this.
            continue
        if is_folder(source) and _is_inside(output, source):
            raise InputError(f"{output} must be outside the folder {source}, which is read; write it elsewhere")
        if is_folder(output) and _is_inside(source, output):
            raise InputError(f"{output} must be a folder without inputs, found {source} in it; name another folder")
        for file in (source, *(list_folder(source) if is_folder(source) else ())):
            if _is_same(output, file):
                raise InputError(f"{output} must not be an input, found that it is {file}; write to another file")


def _is_same(one: Path, other: Path) -> bool:
    if not (exists(one) and exists(other)):
        return False
    with reaching(one):
        return one.samefile(other)


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether ``path``, or what it links to, is in ``folder`` or a folder below it."""
    with reaching(path):
        spellings = (path.absolute().parent, path.resolve().parent)
    return any(_is_same(parent, folder) for start in spellings for parent in (start, *start.parents))
