"""Hashes of fits: equal for equal fits, and a difference is found and named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bits

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_a_hash_is_of_bytes_dtype_and_shape():
    hashed = [
        bits.hash_leaves({"a": leaf})["['a']"]
        for leaf in (jnp.zeros(2), -jnp.zeros(2), jnp.zeros((2, 1)), jnp.zeros(2, jnp.int32), jnp.zeros(2))
    ]
    assert len(set(hashed)) == 4
    assert hashed[0] == hashed[-1]


def test_differences_name_the_leaf():
    before = {"run": {"a": "1", "b": "2", "c": "3"}}
    now = {"run": {"a": "1", "b": "9", "d": "4"}, "other": {"a": "1"}}
    assert bits.differences(before, before) == []
    assert bits.differences(before, now) == [
        "run: b differs",
        "run: c is missing",
        "run: d is new",
        "other: this run is not in the file",
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fits_are_saved_and_compared(tiny, tmp_path, monkeypatch, capsys, dtype):
    file = tmp_path / "bits.json"
    arguments = ["--rows", "320", "--presets", "fast", "--dtype", dtype, "--ways", "align,mesh"]
    assert bits.main([*arguments, "--save", str(file)]) == 0
    assert not jax.config.jax_enable_x64
    saved = json.loads(file.read_text())
    assert list(saved["hashes"]) == [f"fast, align, {dtype}", f"fast, mesh, {dtype}"]
    assert ".map.W" in saved["hashes"][f"fast, align, {dtype}"]
    assert f"fast, mesh, {dtype}: .best.map.W" in capsys.readouterr().out
    assert bits.main([*arguments, "--compare", str(file)]) == 0
    assert "leaves are as in" in capsys.readouterr().out

    def nudge(tree, hash_leaves=bits.hash_leaves):
        return hash_leaves(jax.tree.map(lambda leaf: np.asarray(leaf) + np.asarray(leaf == 0, leaf.dtype), tree))

    monkeypatch.setattr(bits, "hash_leaves", nudge)
    assert bits.main([*arguments, "--compare", str(file)]) == 1
    assert f"fast, align, {dtype}: .verdict differs" in capsys.readouterr().out
