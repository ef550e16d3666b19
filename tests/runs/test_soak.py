"""Many fits in one process: memory stays flat, few programs are compiled, and threads do not disturb each other."""

import concurrent.futures
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import planted_clouds, small_config

from mv2v_jax import align, apply
from mv2v_jax.alignment import api
from mv2v_jax.data.padding import padded_size

pytestmark = pytest.mark.slow

FITS = int(os.environ.get("MV2V_SOAK", "200"))
CONFIG = small_config(components_num_runs=0)


def resident_bytes():
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(next(fields)[1])


@pytest.fixture(scope="module")
def rows():
    planted = planted_clouds(6, 5, num_x=400, num_y=400, groups=6, seed=10)
    return np.asarray(planted.x), np.asarray(planted.y)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_and_programs_over_many_fits_of_changing_sizes(rows):
    x, y = rows
    sizes = np.random.default_rng(0).integers(128, 160, FITS)
    buckets = {padded_size(size) for size in sizes.tolist()}
    before = api._align._cache_size()
    used = []
    for seed, size in enumerate(sizes):
        result = align(jax.random.key(seed), x[:size], y[:size], CONFIG)
        np.asarray(apply(result.map, x[:size]))
        used.append(resident_bytes())
    assert api._align._cache_size() - before <= len(buckets)
    # Everything is compiled by then.
    assert used[-1] < used[FITS // 2] + 50 * 2**20


def test_eight_threads_fit_at_once(rows):
    x, y = rows

    def fit(seed):
        return np.asarray(align(jax.random.key(seed), x[:150], y[:150], CONFIG).map.W)

    alone = [fit(seed) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        together = list(threads.map(fit, range(8)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
