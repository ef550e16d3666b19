"""The demo data: installed, in a clone, or missing with a sentence that names the fix."""

import sys

import pytest

from mv2v_jax.data import demo
from mv2v_jax.errors import InputError


def test_the_data_of_the_clone_is_found_without_being_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "mv2v_jax_demo", None)
    assert demo.load_encoder("minilm")[0].shape == (14_000, 384)


def test_missing_data_names_its_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mv2v_jax_demo", None)
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "site-packages" / "mv2v_jax" / "data" / "demo.py"))
    with pytest.raises(InputError, match="pip install mv2v_jax_demo"):
        demo.load_demo_data()
