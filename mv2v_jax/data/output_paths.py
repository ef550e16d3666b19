"""What a command may write over: never an input, and never under the name of another format."""

from collections.abc import Iterable
from pathlib import Path

from mv2v_jax.errors import InputError


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
        if not source.exists():
            # Whatever opens it reports this.
            continue
        if source.is_dir() and _is_inside(output, source):
            raise InputError(f"{output} must be outside the folder {source}, which is read; write it elsewhere")
        if output.is_dir() and _is_inside(source, output):
            raise InputError(f"{output} must be a folder without inputs, found {source} in it; name another folder")
        for file in (source, *(source.iterdir() if source.is_dir() else ())):
            if _is_same(output, file):
                raise InputError(f"{output} must not be an input, found that it is {file}; write to another file")


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether ``path``, or what it links to, is in ``folder`` or a folder below it."""
    spellings = (path.absolute().parent, path.resolve().parent)
    return any(_is_same(parent, folder) for start in spellings for parent in (start, *start.parents))
