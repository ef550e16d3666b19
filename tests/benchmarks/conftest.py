"""Small configs and shared compilations for the tests of the benchmarks."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from benchmarks import reference, speed
from mv2v_jax import Config

ANCHORS = {"num_sets": 3, "num_clusters": 4, "lloyd_steps": 3, "num_starts": 2, "search_steps": 5, "kept_sets": 2}
FEW_STEPS = Config().replace(anchors=ANCHORS, components={"num_runs": 0}, annealing={"steps": 1})
PRESETS = {
    "notebook": Config.notebook().replace(anchors=ANCHORS, published={"match_steps": 2, "cluster_steps": 0}),
    "fast": FEW_STEPS.replace(settling={"steps": 0, "whole_steps": 0}),
    "default": FEW_STEPS.replace(settling={"steps": 0, "whole_steps": 1}),
}
SETTINGS = reference.Settings(
    num_sets=6, num_clusters=4, anchor_rows=300, num_starts=4, num_neighbors=5, steps=2, refine_clusters=20
)


@pytest.fixture
def tiny(monkeypatch):
    """Presets and settings that compile and finish soon; their maps are worth nothing."""
    monkeypatch.setattr(Config, "preset", PRESETS.__getitem__)
    monkeypatch.setattr(reference, "Settings", lambda: SETTINGS)
    monkeypatch.setattr(speed, "SEARCH_STARTS", 4)
    return PRESETS


@pytest.fixture(scope="module")
def shared_compilations(tmp_path_factory):
    """Compile every program once per module, although each benchmark compiles for itself to time it."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
