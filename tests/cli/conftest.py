"""Data and a fitted map for the tests of the command line."""

import numpy as np
import pytest
from cli.commands import CACHE, SMALL, run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with two rotated, noisy views of one clustered cloud: x and y of disjoint rows, x_eval and y_eval of
    true pairs.
    """
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 10)) * np.linspace(3, 0.5, 10)
    # Skewed within the clusters, because round clusters leave it open which of their rows belong together.
    latent = centres[rng.integers(0, 12, 1_300)] + 0.4 * rng.exponential(size=(1_300, 10)) ** 1.5
    views = [
        latent @ np.linalg.qr(rng.normal(size=(d, 10)))[0].T + 0.01 * rng.normal(size=(1_300, d)) + 0.5
        for d in (16, 12)
    ]
    source, target = (view.astype(np.float32) for view in views)
    arrays = {"x": source[:600], "y": target[600:1_200], "x_eval": source[1_200:], "y_eval": target[1_200:]}
    for name, rows in arrays.items():
        np.save(folder / f"{name}.npy", rows)
    return folder


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """The folder of ``data`` with map.safetensors fitted on it, and what the fit printed in align.json."""
    CACHE["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))
    fit = ("align", "x.npy", "y.npy", "-o", "map.safetensors", "--json", "--seed", 1, "--index-size", 50_000)
    done = run(*fit, *SMALL, cwd=data)
    assert done.returncode == 0, done.stderr
    # Silent where standard error is not a terminal, and one line of JSON on standard output.
    assert done.stderr == ""
    (data / "align.json").write_text(done.stdout)
    return data
