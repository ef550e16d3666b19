"""Texts from files, and what is said about files that hold none."""

import gzip
import json

import pytest

from mv2v_jax.data.texts import load_texts
from mv2v_jax.errors import InputError

TEXTS = ["one", "", "drei\u2028vier \x0b fünf", 'a "quoted" <b>text</b>']


@pytest.mark.parametrize("name", ["texts.txt", "texts.json", "texts.json.gz"])
def test_texts_survive_a_file(name, tmp_path):
    path, listed = tmp_path / name, json.dumps(TEXTS).encode()
    lines = "".join(f"{text}\n" for text in TEXTS).encode()
    path.write_bytes({"texts.txt": lines, "texts.json": listed, "texts.json.gz": gzip.compress(listed)}[name])
    assert load_texts(path, len(TEXTS)) == TEXTS


def test_lines_of_other_systems(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone\r\ntwo".encode())
    assert load_texts(path, 2) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("texts.txt", b"one\ntwo\n", "a text for each of the 3 rows, found 2 texts"),
        ("texts.txt", b"\xff\xfe", "one text per line"),
        ("texts.json", b'{"a": 1}', "found JSON of another shape"),
        ("texts.json", b"[1, 2, 3]", "found JSON of another shape"),
        ("texts.json", b"[", "one text per line in a .txt file"),
        ("texts.json.gz", b"plain", "one text per line in a .txt file"),
        ("texts.csv", b"a\nb\nc\n", "found: suffix .csv"),
        (None, b"", "found no file of that name"),
    ],
)
def test_files_without_these_texts_are_refused(name, content, message, tmp_path):
    path = tmp_path / (name or "missing.txt")
    if name:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_texts(path, 3)
