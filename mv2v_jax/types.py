"""Configuration and results: frozen, and pytrees throughout.

Of a `Config`, the integers and booleans are static (they decide shapes and which code is compiled); the floats are
traced, so that sweeping them compiles nothing and they can be vmapped over.
"""

import dataclasses
from typing import Any

import jax

from mv2v_jax.pytree import pytree


def _static(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"static": True, "help": help})


def _traced(default: float, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every choice of `mv2v_jax.align`; the defaults are the `default` preset.

    Sample sizes larger than the data mean all rows. A stage with zero steps is left out.
    """

    most_rows: int = _static(131_072, "rows of each space that take part, drawn at random from larger ones")

    search_dims: int = _static(128, "principal directions of each space that the search sees; 0 for all")

    num_anchor_sets: int = _static(30, "anchor sets: k-means of both spaces, matched to each other")
    num_clusters: int = _static(30, "k-means clusters per anchor set")
    anchor_rows: int = _static(5_000, "rows drawn from each space for one anchor set")
    lloyd_steps: int = _static(12, "Lloyd iterations of every k-means")
    num_starts: int = _static(8, "starts of the assignment search per anchor set")
    search_steps: int = _static(150, "swaps per start of the assignment search")
    kept_sets: int = _static(15, "anchor sets kept: those that agree most with the others")

    matching_rows: int = _static(2_048, "rows of X matched by relative representations; 0 for all")
    num_neighbors: int = _static(50, "nearest rows of Y averaged into a pseudo-partner by relative representations")

    match_steps: int = _static(0, "refine-1: steps of match, Procrustes, smooth")
    match_rows: int = _static(1_000, "refine-1: rows of X drawn per step")
    match_neighbors: int = _static(50, "refine-1: nearest rows of Y averaged into a pseudo-partner")

    held_out_rows: int = _static(1_000, "rows of each space kept out of the fit to score it, at most a tenth of them")

    anneal_steps: int = _static(100, "annealed refinement: steps")
    anneal_rows: int = _static(2_048, "annealed refinement: rows of each space per step, at most half of them")
    anneal_neighbors: int = _static(3, "annealed refinement: nearest rows averaged into a pseudo-partner")
    anneal_power: float = _traced(
        4.0, "annealed refinement: first power of the correlation that weights a direction; falls to reliability_power"
    )

    csls_steps: int = _static(8, "CSLS refinement: steps on samples, averaged")
    csls_rows: int = _static(8_192, "CSLS refinement: rows of each space per step")
    csls_neighbors: int = _static(2, "CSLS refinement: fewest nearest rows averaged into a pseudo-partner")
    ample_rows: int = _static(40_000, "CSLS refinement: rows that need no averaging; the fewer, the more neighbors")
    whole_steps: int = _static(2, "CSLS refinement: last steps, on all rows")
    whole_rows: int = _static(32_768, "CSLS refinement: what counts as all rows of a larger space")

    pair_weight: float = _traced(
        1.0, "how much a known pair counts, where any are given; 0 where they only match clusters"
    )

    cluster_steps: int = _static(0, "refine-2: rounds of k-means of X, k-means of Y from there, Procrustes")
    refine_clusters: int = _static(500, "refine-2: clusters")

    smoothing: float = _traced(0.5, "refine-1 and refine-2: share of the new map in W <- (1 - a) W + a W_new")
    project: bool = _static(True, "return the nearest semi-orthogonal map instead of the smoothed average")
    reliability_power: float = _traced(
        0.4, "the map weights directions by the correlation of their pairs to this power"
    )
    whitening_power: float = _traced(0.25, "the map scales directions by their variance to minus this power")

    @property
    def returns_cross(self) -> bool:
        """Whether the last stage returns a cross-covariance, not a map."""
        return bool(self.anneal_steps or self.csls_steps or self.whole_steps)


def notebook() -> Config:
    """The values of the published notebook of mini-vec2vec (arXiv 2510.02348)."""
    return Config(
        search_dims=0,
        num_anchor_sets=30,
        num_clusters=20,
        anchor_rows=10_000,
        num_starts=30,
        kept_sets=30,
        matching_rows=0,
        num_neighbors=50,
        match_steps=100,
        match_rows=1_000,
        match_neighbors=50,
        anneal_steps=0,
        csls_steps=0,
        whole_steps=0,
        cluster_steps=1,
        refine_clusters=500,
        smoothing=0.5,
        project=False,
        whitening_power=0.0,
    )


def fast() -> Config:
    """Half of the time of the default or less: fewer anchor sets and steps, smaller samples."""
    return Config(
        most_rows=32_768,
        num_anchor_sets=20,
        kept_sets=10,
        anneal_steps=60,
        csls_rows=4_096,
        whole_steps=1,
        whole_rows=16_384,
    )


def paper() -> Config:
    """The values of the mini-vec2vec paper: fewer refine-1 steps than the notebook, each on ten times the rows."""
    return dataclasses.replace(notebook(), match_steps=75, match_rows=10_000)


PRESETS = {"default": Config, "fast": fast, "notebook": notebook, "paper": paper}


@pytree
class LinearMap:
    """A linear map between two embedding spaces, with what is needed to use it on raw vectors.

    Attributes:
        W: ``[d_x, d_y]``, from centred unit rows of the source to centred unit rows of the target.
        mean_x: ``[d_x]``, mean of the source's fitting rows.
        mean_y: ``[d_y]``, mean of the target's fitting rows.
        scale_x: scalar, mean length of the source's fitting rows after centring.
        scale_y: scalar, the same of the target; `apply` needs it to return to the target's raw frame.
    """

    W: jax.Array
    mean_x: jax.Array
    mean_y: jax.Array
    scale_x: jax.Array
    scale_y: jax.Array


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
class Evidence:
    """What held-out rows, and the anchor sets it came from, say of a map. Scalars.

    Attributes:
        cross: mean cosine of mapped held-out rows with their nearest fitted rows of the other space, both directions.
        within: the same with fitted rows of their own space.
        null: the same as ``cross`` after reflections that keep every variance, the mean of several.
        null_deviation: standard deviation of those.
        num_rows: int32, held-out rows of the smaller space; where there are none, everything else is 0 but
            ``anchor_agreement``.
        closeness: ``(cross - null) / (within - null)``: 0 for a map that found nothing, 1 where mapped rows look like
            rows of the target. The scale is at least five ``null_deviation`` long.
        anchor_agreement: median of `AlignInfo.anchor_agreement`: 1 where all anchor sets say the same.
        score: ``closeness`` times ``anchor_agreement``, which counts as 0 where it is negative.
    """

    cross: jax.Array
    within: jax.Array
    null: jax.Array
    null_deviation: jax.Array
    num_rows: jax.Array
    closeness: jax.Array
    anchor_agreement: jax.Array
    score: jax.Array


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
