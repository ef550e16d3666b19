"""mini-vec2vec in JAX: a linear map between two embedding spaces without a single known pair."""

from mv2v_jax.alignment.fit import align
from mv2v_jax.alignment.restarts import Restarts, align_restarts, select
from mv2v_jax.alignment.results import AlignResult
from mv2v_jax.alignment.score import Verdict
from mv2v_jax.alignment.several_spaces import Synchronized, synchronize
from mv2v_jax.config import PRESETS, Config, fast, notebook, paper
from mv2v_jax.evaluation.stability import Stability, stability
from mv2v_jax.linear_map import LinearMap, apply, invert
from mv2v_jax.training.contrastive import refine_contrastive
from mv2v_jax.training.losses import alignment_loss
from mv2v_jax.training.online import online_init, online_map, online_update
from mv2v_jax.version import __version__

__all__ = [
    "PRESETS",
    "AlignResult",
    "Config",
    "LinearMap",
    "Restarts",
    "Stability",
    "Synchronized",
    "Verdict",
    "__version__",
    "align",
    "align_restarts",
    "alignment_loss",
    "apply",
    "fast",
    "invert",
    "notebook",
    "online_init",
    "online_map",
    "online_update",
    "paper",
    "refine_contrastive",
    "select",
    "stability",
    "synchronize",
]
