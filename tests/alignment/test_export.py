"""Programs that are exported, written and read again give the same numbers. Needs the extra ``export``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_map, planted_clouds, small_config

from mv2v_jax import align, apply

pytest.importorskip("flatbuffers")


def write_and_read(function, *arguments):
    exported = jax.export.export(jax.jit(function))(*arguments)
    return jax.export.deserialize(bytearray(exported.serialize())).call(*arguments)


@pytest.mark.parametrize("frame", ["centred", "target"])
def test_applying_a_map(frame, rng):
    linear_map, rows = make_map(rng.normal(size=(5, 3))), jnp.asarray(rng.normal(size=(7, 5)), jnp.float32)
    found = write_and_read(lambda x: apply(linear_map, x, frame=frame), rows)
    np.testing.assert_allclose(found, apply(linear_map, rows, frame=frame), atol=1e-6)


@pytest.mark.slow
def test_a_whole_fit():
    planted = planted_clouds(5, 5, num_x=61, num_y=53, groups=6, seed=10)
    arguments = jax.random.key(0), jnp.asarray(planted.x), jnp.asarray(planted.y)
    config = small_config()
    found = write_and_read(lambda key, x, y: align(key, x, y, config).map.W, *arguments)
    np.testing.assert_allclose(found, align(*arguments, config).map.W, atol=1e-4)
