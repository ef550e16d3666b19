"""Importing the package imports no JAX, and every public name is where type checkers expect it."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mv2v_jax


def run_python(program: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("imported", ["mv2v_jax", "mv2v_jax.errors"])
def test_import_loads_no_jax(imported):
    loaded = run_python(f"import sys, {imported}; print(sorted({{'jax', 'jaxlib', 'optax'}} & set(sys.modules)))")
    assert loaded == "[]"


def test_names_and_modules_load_at_first_use():
    program = (
        "import sys, mv2v_jax; dir(mv2v_jax); assert 'jax' not in sys.modules; "
        "print(mv2v_jax.align.__module__, mv2v_jax.training.__name__, 'jax' in sys.modules)"
    )
    assert run_python(program) == "mv2v_jax.alignment.api mv2v_jax.training True"


def test_star_import_gives_every_public_name():
    names: dict = {}
    exec("from mv2v_jax import *", names)
    assert set(mv2v_jax.__all__) <= set(names)
    assert set(mv2v_jax.__all__) <= set(dir(mv2v_jax))


def test_type_checkers_and_python_find_the_same_names():
    tree = ast.parse(Path(mv2v_jax.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = {alias.name: node.module for node in block.body for alias in node.names}
    assert imports == {name: f"mv2v_jax.{module}" for name, module in mv2v_jax._HOME_OF.items()}
    assert {*imports, "__version__"} == set(mv2v_jax.__all__)
    for name, module in imports.items():
        assert getattr(mv2v_jax, name) is getattr(importlib.import_module(module), name)


def test_no_public_name_hides_a_module():
    modules = {module.name for module in pkgutil.iter_modules(mv2v_jax.__path__)}
    assert not modules & set(mv2v_jax.__all__)
    assert mv2v_jax.training.__name__ == "mv2v_jax.training"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'alignn'"):
        _ = mv2v_jax.alignn
    assert not hasattr(mv2v_jax, "_private")
