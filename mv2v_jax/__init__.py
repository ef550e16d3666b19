"""mini-vec2vec in JAX: a linear map between two embedding spaces without a single known pair."""

from mv2v_jax.alignment.anchors import AnchorInfo
from mv2v_jax.alignment.api import Restarts, align, align_restarts, select
from mv2v_jax.alignment.fit import AlignInfo, AlignResult
from mv2v_jax.alignment.score import Evidence, Reason, Verdict, estimate_recall
from mv2v_jax.alignment.several_spaces import SyncConfig, Synchronized, synchronize
from mv2v_jax.config import (
    AnchorConfig,
    AnnealingConfig,
    Config,
    PublishedConfig,
    RelativeConfig,
    SettlingConfig,
    WhiteningConfig,
)
from mv2v_jax.data.demo import DemoData, load_demo_data
from mv2v_jax.data.formats import load_embeddings
from mv2v_jax.data.map_file import load_map, save_map
from mv2v_jax.data.row_files import RowFiles, open_rows
from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.metrics import Metrics, evaluate, oracle
from mv2v_jax.evaluation.stability import Stability, measure_stability
from mv2v_jax.linear_map import Centering, LinearMap, apply, invert
from mv2v_jax.ops.sharding import make_mesh
from mv2v_jax.version import __version__

__all__ = [
    "AlignInfo",
    "AlignResult",
    "AnchorConfig",
    "AnchorInfo",
    "AnnealingConfig",
    "Centering",
    "Config",
    "DemoData",
    "Evidence",
    "InputError",
    "LinearMap",
    "Metrics",
    "PublishedConfig",
    "Reason",
    "RelativeConfig",
    "Restarts",
    "RowFiles",
    "SettlingConfig",
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
    "invert",
    "load_demo_data",
    "load_embeddings",
    "load_map",
    "make_mesh",
    "measure_stability",
    "open_rows",
    "oracle",
    "save_map",
    "select",
    "synchronize",
]
