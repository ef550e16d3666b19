"""``mv2v evaluate-search``: documents that were embedded again look for their own rows of an index."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mv2v_jax.__main__ import main
from mv2v_jax.data.map_file import save_map
from mv2v_jax.linear_map import Centering, LinearMap


@pytest.fixture
def searched(tmp_path, monkeypatch, capfd):
    """A function that runs the command on a planted rotation: its exit code and both streams."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)
    x = rng.normal(size=(300, 8)).astype(np.float32)
    zero = Centering(mean=jnp.zeros(8), scale=jnp.ones(()))
    monkeypatch.chdir(tmp_path)
    save_map("map.safetensors", LinearMap(W=jnp.asarray(turn), source=zero, target=zero))
    np.save("index.npy", x)
    np.save("docs.npy", (x @ turn)[50:90])
    np.save("rows.npy", np.arange(50, 90))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mv2v", "evaluate-search", "map.safetensors", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capfd.readouterr()

    return run


def test_finds_every_document_and_prints_both_ways(searched):
    code, text, error = searched("index.npy", "docs.npy", "--rows", "rows.npy")
    assert (code, error) == (0, "")
    assert text.startswith("40 documents look for their own row among 300, by cosine; by chance 0.33% would")
    code, text, _ = searched("index.npy", "docs.npy", "--rows", "rows.npy", "--json")
    scores = json.loads(text)
    assert (scores["n"], scores["documents"], scores["metric"]) == (300, 40, "cosine")
    assert scores["queries_mapped"]["recall1"] == scores["index_moved"]["recall1"] == [1, 1, 1]
    assert scores["index_moved"]["overlap10"] == [1, 1, 1]


def test_by_default_documents_are_the_first_rows(searched):
    scores = json.loads(searched("index.npy", "docs.npy", "--json", "--metric", "l2")[1])
    assert scores["index_moved"]["recall10"][0] < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("index.npy", "docs.npy", "--rows", "none.npy"), "--rows must be a .npy file of whole numbers"),
        (("index.npy", "docs.npy", "--rows", "index.npy"), "must be 40 whole numbers, one per document"),
        (("docs.npy", "index.npy"), "index.npy must be documents of docs.npy, found 300 of 40 rows"),
        (("index.npy", "docs.npy", "--strict"), "--strict needs a map that remembers its source"),
        (("index.npy", "docs.npy", "--metric", "angle"), "angle"),
    ],
)
def test_bad_input_is_one_sentence(searched, arguments, message):
    code, text, error = searched(*arguments)
    assert (code, text) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1
