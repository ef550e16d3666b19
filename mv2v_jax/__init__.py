"""mini-vec2vec in JAX: a linear map between two embedding spaces without a single known pair."""

from mv2v_jax.contrastive import refine_contrastive
from mv2v_jax.incremental import refine_init, refine_map, refine_update
from mv2v_jax.linear_map import apply, invert
from mv2v_jax.losses import alignment_loss
from mv2v_jax.pipeline import align
from mv2v_jax.restarts import Restarts, align_restarts, select
from mv2v_jax.stability import Stability, stability
from mv2v_jax.synchronize import Synchronized, synchronize
from mv2v_jax.types import PRESETS, AlignResult, Config, LinearMap, fast, notebook, paper
from mv2v_jax.verdict import Verdict

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "AlignResult",
    "Config",
    "LinearMap",
    "Restarts",
    "Stability",
    "Synchronized",
    "Verdict",
    "align",
    "align_restarts",
    "alignment_loss",
    "apply",
    "fast",
    "invert",
    "notebook",
    "paper",
    "refine_contrastive",
    "refine_init",
    "refine_map",
    "refine_update",
    "select",
    "stability",
    "synchronize",
]
