"""Hashes of fits: equal for equal fits, and a difference is found and named."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bits
from mv2v_jax import oracle


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
def test_results_are_saved_and_compared(tmp_path, monkeypatch, capsys, dtype):
    # Any map will do, and fitting one is what would take time here.
    monkeypatch.setattr(bits, "align", lambda key, x, y, config: oracle(x, y, y))
    file = tmp_path / "bits.json"
    arguments = ["--rows", "120", "--presets", "fast", "--dtype", dtype, "--ways", "align"]
    assert bits.main([*arguments, "--save", str(file)]) == 0
    assert not jax.config.jax_enable_x64
    assert f"fast, align, {dtype}: .W" in capsys.readouterr().out
    assert list(json.loads(file.read_text())["hashes"]) == [f"fast, align, {dtype}"]
    assert bits.main([*arguments, "--compare", str(file)]) == 0
    assert f"all 5 leaves are as in {file}" in capsys.readouterr().out

    def nudge(tree, hash_leaves=bits.hash_leaves):
        assert tree.W.dtype == dtype
        return hash_leaves(dataclasses.replace(tree, W=np.nextafter(tree.W, 1)))

    monkeypatch.setattr(bits, "hash_leaves", nudge)
    assert bits.main([*arguments, "--compare", str(file)]) == 1
    assert capsys.readouterr().out.endswith(f"fast, align, {dtype}: .W differs\n")


@pytest.mark.slow
def test_pairs_and_a_mesh_are_ways_to_fit(tiny, tmp_path):
    file = tmp_path / "bits.json"
    bits.main(["--rows", "320", "--presets", "fast", "--ways", "pairs,mesh", "--save", str(file)])
    hashes = json.loads(file.read_text())["hashes"]
    assert ".map.W" in hashes["fast, pairs, float32"]
    assert {".best.map.W", ".maps.W", ".trajectory['refine_annealed']"} <= set(hashes["fast, mesh, float32"])
