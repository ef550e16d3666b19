"""Settings and fixtures of all tests; functions they share are in `helpers`."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import OLD_EMITTERS


def _set_if_known(flag: str) -> None:
    """Add a flag of XLA for this process and all it starts; one that does not know it would die of it."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if flag in os.environ.get("XLA_FLAGS", ""):
        return
    tried = [sys.executable, "-c", "import jax; jax.devices()"]
    if subprocess.run(tried, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True).returncode == 0:
        os.environ["XLA_FLAGS"] = flags


# Nearly all the suite's time is compiling, of which the emitters with an MLIR context per kernel take half.
_set_if_known(OLD_EMITTERS)

# For meshes. What runs on one device is not touched by the others.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled():
    """Every compiled function keeps some memory maps, of which a process has 65,530: XLA crashes for want of one."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compile():
    """Compile with little optimisation: for tests that compare the same program with itself, compiling is the cost."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
