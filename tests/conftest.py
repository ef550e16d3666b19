"""Settings and fixtures of all tests; shared functions are in `helpers`."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import OLD_EMITTERS

from mv2v_jax.alignment.stage_by_stage import StageByStage


def _set_if_known(flag: str) -> None:
    """Add a flag of XLA for this process and those it starts, unless this version of XLA stops at unknown flags."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if flag in os.environ.get("XLA_FLAGS", ""):
        return
    tried = [sys.executable, "-c", "import jax; jax.devices()"]
    if subprocess.run(tried, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True).returncode == 0:
        os.environ["XLA_FLAGS"] = flags


# Compiling takes nearly all of the suite's time, and half of that goes to emitters with an MLIR context per kernel.
_set_if_known(OLD_EMITTERS)

# The same goes for optimising: no test measures how fast a program is, and most run once. Doctests included.
jax.config.update("jax_disable_most_optimizations", True)

# No test keeps what it compiles in the folder of whoever runs it.
os.environ["MV2V_COMPILATION_CACHE"] = ""

# For meshes. Tests without a mesh run on one of them.
jax.config.update("jax_num_cpu_devices", 8)

# Implicit changes of dtype and of rank are errors, so that float32 rows stay float32 where float64 is enabled and no
# vector is broadcast against a matrix by accident.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled():
    """Each compiled function keeps some memory maps; XLA crashes when a process has used all of its 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture
def without_computing(monkeypatch):
    """`StageByStage` takes ones of the right shapes for the result of every stage, so that nothing is compiled.

    Zeros for the choice, so that it is the first search.
    """

    def execute(run, name, fun, *args):
        number = 0 if name == "choose" else 1
        return jax.tree.map(lambda leaf: jnp.full(leaf.shape, number, leaf.dtype), jax.eval_shape(fun, *args))

    monkeypatch.setattr(StageByStage, "execute", execute)


@pytest.fixture
def lenient_promotion():
    """JAX's default rules for dtypes and ranks, for code of other libraries that does not keep to the strict ones."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
