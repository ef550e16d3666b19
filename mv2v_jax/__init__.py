"""mini-vec2vec in JAX: a linear map between two embedding spaces without a single known pair."""

import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from mv2v_jax.version import __version__

if TYPE_CHECKING:
    from mv2v_jax.alignment.anchors import AnchorInfo
    from mv2v_jax.alignment.api import Restarts, align, align_restarts, select
    from mv2v_jax.alignment.results import AlignInfo, AlignResult
    from mv2v_jax.alignment.score import Evidence, Reason, Verdict, estimate_recall
    from mv2v_jax.alignment.several_spaces import SyncConfig, Synchronized, synchronize
    from mv2v_jax.config import (
        AnchorConfig,
        AnnealingConfig,
        ComponentsConfig,
        Config,
        PolishingConfig,
        PublishedConfig,
        RelativeConfig,
        SettlingConfig,
        WhiteningConfig,
    )
    from mv2v_jax.data.demo import DemoData, DemoTexts, load_demo_data, load_demo_texts
    from mv2v_jax.data.map_file import load_map, save_map
    from mv2v_jax.data.row_files import RowFiles, open_rows
    from mv2v_jax.errors import AlignmentWarning, InputError
    from mv2v_jax.evaluation.metrics import Metrics, evaluate, oracle
    from mv2v_jax.evaluation.search import SearchScores, evaluate_search
    from mv2v_jax.evaluation.stability import Stability, measure_stability
    from mv2v_jax.linear_map import Centering, LinearMap, apply, invert
    from mv2v_jax.ops.sharding import make_mesh
    from mv2v_jax.profiles.profile import SpaceProfile, profile_rows
    from mv2v_jax.stores.sources import load_embeddings

__all__ = [
    "AlignInfo",
    "AlignResult",
    "AlignmentWarning",
    "AnchorConfig",
    "AnchorInfo",
    "AnnealingConfig",
    "Centering",
    "ComponentsConfig",
    "Config",
    "DemoData",
    "DemoTexts",
    "Evidence",
    "InputError",
    "LinearMap",
    "Metrics",
    "PolishingConfig",
    "PublishedConfig",
    "Reason",
    "RelativeConfig",
    "Restarts",
    "RowFiles",
    "SearchScores",
    "SettlingConfig",
    "SpaceProfile",
    "Stability",
    "SyncConfig",
    "Synchronized",
    "Verdict",
    "WhiteningConfig",
    "__version__",
    "align",
    "align_restarts",
    "apply",
    "estimate_recall",
    "evaluate",
    "evaluate_search",
    "invert",
    "load_demo_data",
    "load_demo_texts",
    "load_embeddings",
    "load_map",
    "make_mesh",
    "measure_stability",
    "open_rows",
    "oracle",
    "profile_rows",
    "save_map",
    "select",
    "synchronize",
]

# Where each public name is. Python imports the module when the name is first used, so that importing this package, or a
# module that needs NumPy only, imports no JAX. Type checkers read the imports above; a test compares the two lists.
_HOMES = {
    "alignment.anchors": "AnchorInfo",
    "alignment.api": "Restarts align align_restarts select",
    "alignment.results": "AlignInfo AlignResult",
    "alignment.score": "Evidence Reason Verdict estimate_recall",
    "alignment.several_spaces": "SyncConfig Synchronized synchronize",
    "config": "AnchorConfig AnnealingConfig ComponentsConfig Config PolishingConfig PublishedConfig RelativeConfig "
    "SettlingConfig WhiteningConfig",
    "data.demo": "DemoData DemoTexts load_demo_data load_demo_texts",
    "data.map_file": "load_map save_map",
    "data.row_files": "RowFiles open_rows",
    "errors": "AlignmentWarning InputError",
    "evaluation.metrics": "Metrics evaluate oracle",
    "evaluation.search": "SearchScores evaluate_search",
    "evaluation.stability": "Stability measure_stability",
    "linear_map": "Centering LinearMap apply invert",
    "ops.sharding": "make_mesh",
    "profiles.profile": "SpaceProfile profile_rows",
    "stores.sources": "load_embeddings",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


# Messages go where the program that uses this package sends them, and nowhere by default.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of this package, at its first use."""
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
