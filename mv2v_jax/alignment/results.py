"""What a fit returns, and what its parts hand to each other. Arrays only."""

import jax

from mv2v_jax.alignment.anchors import AnchorInfo
from mv2v_jax.alignment.estimate import Estimate
from mv2v_jax.alignment.score import Evidence, Reason, Verdict
from mv2v_jax.alignment.space import Space, Subspace, TwoSpaces
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.pytree import pytree


@pytree
class ComponentsInfo:
    """Whether a search went on to independent components. Scalars.

    Attributes:
        tried: bool, whether the closeness after matching clusters fell short of ``components.below``.
        used: bool, whether the components gave the better map.
        agreement: median agreement of each run with the others that voted with it, from -1 to 1; 0 where they were not
            tried. Wrong maps can agree as well.
    """

    tried: jax.Array
    used: jax.Array
    agreement: jax.Array


@pytree
class AlignInfo:
    """What happened on the way to a map. Arrays only; lengths follow from the config.

    Attributes:
        anchors: `AnchorInfo`, each field ``[num_sets]``.
        components: `ComponentsInfo`.
        zero_rows_x: int32 scalar, zero rows of X; they take no part.
        zero_rows_y: int32 scalar, zero rows of Y.
        orthogonality: scalar, ``||W W^T - I||_F`` of the smaller side before directions are weighted: 0 where the map
            was projected.
        all_finite: bool scalar, whether every entry of the map is finite.
    """

    anchors: AnchorInfo
    components: ComponentsInfo
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
        reason: int32 scalar, a `Reason`: what decided the verdict.
        confidence: calibrated probability, from 0 to 1, that true pairs would have a FOSCTTM below 0.05.
        estimated_top1: estimate of the top-1 that true pairs would give among 2,000 rows; `estimate_recall` estimates
            others.
        agreement: median agreement of the map with those of other restarts, see `fine_agreement`; 0 without others.
        evidence: `Evidence` from held-out rows; its score is comparable between runs on the same data, whatever their
            config, and higher is better.
        trajectory: per stage name, the stage's own label-free objective at every step: mean similarity of the rows
            with their pseudo-partners, and for ``polish`` minus its loss. The stages of the search by clusters, of
            settling, and polishing.
        info: `AlignInfo`.
    """

    map: LinearMap
    verdict: jax.Array
    reason: jax.Array
    confidence: jax.Array
    estimated_top1: jax.Array
    agreement: jax.Array
    evidence: Evidence
    trajectory: dict[str, jax.Array]
    info: AlignInfo

    def __repr__(self) -> str:
        d_x, d_y = self.map.W.shape[-2:]
        if isinstance(self.verdict, jax.core.Tracer) or self.verdict.ndim:
            return f"AlignResult(map [{d_x}, {d_y}], verdict {self.verdict.dtype}{list(self.verdict.shape)})"
        steps = ", ".join(f"{name} {values.shape[-1]}" for name, values in self.trajectory.items())
        return (
            f"AlignResult: {Verdict(int(self.verdict)).name}, confidence {float(self.confidence):.2f}, "
            f"estimated top-1 {float(self.estimated_top1):.2f}\n"
            f"  reason: {Reason(int(self.reason)).name.replace('_', ' ')}\n"
            f"  map: {d_x} to {d_y} dimensions\n"
            f"  score: {float(self.evidence.score):.3f} on {int(self.evidence.num_rows):,} held-out rows per side\n"
            f"  steps: {steps or 'none'}"
        )


@pytree
class Searched:
    """The result of one search on the fitted rows, before it is settled.

    Attributes:
        estimate: `Estimate` between the coordinates of the subspace that was searched, ``[r_x, r_y]``.
        evidence: `Evidence` of it from the held-out rows.
        trajectory: per stage of the search by clusters, its label-free objective at every step.
        anchors: `AnchorInfo`.
        components: `ComponentsInfo`.
    """

    estimate: Estimate
    evidence: Evidence
    trajectory: dict[str, jax.Array]
    anchors: AnchorInfo
    components: ComponentsInfo


@pytree
class Choice:
    """Which of several searches is kept, and the weight of each in a consensus.

    Attributes:
        chosen: int32 scalar, the search of the best score.
        order: ``[r]`` int32, all searches by their score, the chosen one first.
        weights: ``[r]``, square of the agreement of each search with the chosen one; 0 if that is negative. Searches
            that found another alignment hardly count.
        agreement: ``[r, r]``, `fine_agreement` of every two restarts.
        with_others: scalar, median agreement of the chosen search with the others; ``None`` for a single search.
    """

    chosen: jax.Array
    order: jax.Array
    weights: jax.Array
    agreement: jax.Array
    with_others: jax.Array | None


@pytree
class Prepared:
    """Both spaces, and what a search sees of them.

    Attributes:
        source: `Space` of all rows of X.
        target: `Space` of all rows of Y.
        fitted: the rows a search is fitted on, in the coordinates of ``subspace``.
        held_out: the rows it is scored on, in the same coordinates.
        subspace: `Subspace` of the directions a search sees.
    """

    source: Space
    target: Space
    fitted: TwoSpaces
    held_out: TwoSpaces
    subspace: Subspace


@pytree
class Search:
    """All searches of a fit.

    Attributes:
        prepared: `Prepared`.
        found: `Searched` of every restart, each leaf ``[r, ...]``.
        choice: `Choice` among them.
    """

    prepared: Prepared
    found: Searched
    choice: Choice
