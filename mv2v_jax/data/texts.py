"""Texts that belong to the rows of embeddings, from a file."""

import gzip
import json
from pathlib import Path

from mv2v_jax.errors import InputError, first_line

_EXAMPLE = "one text per line in a .txt file, or a JSON list of texts in a .json or .json.gz file"


def load_texts(path: str | Path, num_rows: int) -> list[str]:
    r"""Read the texts of ``num_rows`` rows, in their order.

    Args:
        path: a ``.txt`` file with one text per line, or a ``.json`` or ``.json.gz`` file with a list of texts. UTF-8.
        num_rows: number of rows that they belong to.

    Raises:
        InputError: the file is missing, of another kind or damaged, or holds another number of texts.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "texts.txt"
        >>> _ = path.write_text("one\ntwo\n")
        >>> load_texts(path, 2)
        ['one', 'two']
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} must be a file of texts, found no file of that name")
    try:
        texts = _read(path)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} must hold {_EXAMPLE}, found: {first_line(error)}") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{path} must hold {_EXAMPLE}, found JSON of another shape")
    if len(texts) != num_rows:
        raise InputError(f"{path} must hold a text for each of the {num_rows} rows, found {len(texts)} texts")
    return texts


def _read(path: Path) -> object:
    if path.suffix == ".txt":
        # Only line feeds end a line: texts may hold other characters that str.splitlines would split at.
        lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
        return lines[:-1] if lines[-1] == "" else lines
    if path.name.endswith(".json.gz"):
        return json.loads(gzip.decompress(path.read_bytes()))
    if path.suffix == ".json":
        return json.loads(path.read_bytes())
    raise ValueError(f"suffix {path.suffix or 'none'}")
