"""Parts for training loops: losses without pairs, a map that follows an encoder, and a map trained on pseudo-pairs."""

from mv2v_jax.ops.sinkhorn import sinkhorn_divergence
from mv2v_jax.training.contrastive import (
    Contrastive,
    ContrastiveConfig,
    contrastive_loss,
    refine_contrastive,
    round_steps,
)
from mv2v_jax.training.losses import (
    AlignmentTerms,
    LossConfig,
    alignment_loss,
    alignment_terms,
    csls_loss,
    cycle_loss,
    preservation_loss,
    soft_match,
    soft_procrustes,
)
from mv2v_jax.training.online import (
    OnlineConfig,
    OnlineInfo,
    OnlineState,
    online_init,
    online_map,
    online_update,
)

__all__ = [
    "AlignmentTerms",
    "Contrastive",
    "ContrastiveConfig",
    "LossConfig",
    "OnlineConfig",
    "OnlineInfo",
    "OnlineState",
    "alignment_loss",
    "alignment_terms",
    "contrastive_loss",
    "csls_loss",
    "cycle_loss",
    "online_init",
    "online_map",
    "online_update",
    "preservation_loss",
    "refine_contrastive",
    "round_steps",
    "sinkhorn_divergence",
    "soft_match",
    "soft_procrustes",
]
