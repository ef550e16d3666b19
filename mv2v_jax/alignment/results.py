"""What a fit returns."""

import jax

from mv2v_jax.alignment.score import Evidence
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.pytree import pytree


@pytree
class AlignInfo:
    """What happened on the way to a map. Arrays only; lengths follow from the config.

    Attributes:
        anchor_objective: ``[num_anchor_sets]``, linear CKA of the matched centres of each set.
        anchor_agreement: ``[num_anchor_sets]``, cosine of each set's cross-covariance with the sum of the others'.
        anchor_kept: ``[num_anchor_sets]`` bool, the sets that were used.
        zero_rows_x: int32 scalar, rows of X without length; they take no part.
        zero_rows_y: the same of Y.
        orthogonality: scalar, ``||W W^T - I||_F`` of the smaller side before directions are
            weighted: 0 where the map was projected.
        all_finite: bool scalar, whether every entry of the map is finite.
    """

    anchor_objective: jax.Array
    anchor_agreement: jax.Array
    anchor_kept: jax.Array
    zero_rows_x: jax.Array
    zero_rows_y: jax.Array
    orthogonality: jax.Array
    all_finite: jax.Array


@pytree
class AlignResult:
    """What `align` returns.

    Attributes:
        map: the `LinearMap`.
        verdict: int32 scalar, a `Verdict`.
        confidence: calibrated probability, from 0 to 1, that true pairs would have a FOSCTTM below 0.05.
        estimated_top1: estimate of the top-1 that true pairs would give, among some thousands of rows.
        evidence: `Evidence` of held-out rows; its score is comparable between runs on the same data, whatever their
            config, and higher is better.
        trajectory: per stage name, the stage's own label-free objective at every step: mean similarity of the rows
            with their pseudo-partners.
        info: `AlignInfo`.
    """

    map: LinearMap
    verdict: jax.Array
    confidence: jax.Array
    estimated_top1: jax.Array
    evidence: Evidence
    trajectory: dict[str, jax.Array]
    info: AlignInfo
