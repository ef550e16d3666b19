"""Every choice of a fit, grouped by the stage that uses it, with its bounds and its help text.

Integers and booleans are static: they decide shapes and which code is compiled. Floats are traced: sweeping them
compiles nothing, and they can be vmapped over.
"""

from typing import Self

from mv2v_jax.errors import InputError
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.settings import Settings, check_settings, count, number, part, switch

# Above these no fit would end, or no memory would hold it.
_MAX_STEPS, _MAX_RUNS, _MAX_NEIGHBORS = 1_000_000, 10_000, 10_000
# Pseudo-pairs of a batch: their similarities in float32 are then 1 GiB.
_MAX_BATCH = 16_384
# Numbers in the matrices of all starts of the assignment search: 1 GiB.
_MAX_START_NUMBERS = 2**28


@pytree
class AnchorConfig(Settings):
    """Anchor sets: k-means centres of both spaces, matched to each other by quadratic assignment."""

    num_sets: int = count(30, "Number of anchor sets, each from its own random rows.", low=1, high=_MAX_RUNS)
    num_clusters: int = count(30, "Number of k-means clusters per anchor set.", low=2, high=_MAX_NEIGHBORS)
    rows: int = count(5_000, "Rows drawn from each space per anchor set.", low=2)
    lloyd_steps: int = count(12, "Lloyd iterations per k-means of the anchor sets.", high=_MAX_RUNS)
    num_starts: int = count(8, "Starts of the assignment search per anchor set.", low=1, high=_MAX_RUNS)
    search_steps: int = count(150, "Swaps per start of the assignment search.", high=_MAX_STEPS)
    kept_sets: int = count(
        15, "Number of anchor sets kept: those that agree best with the others.", low=1, high=_MAX_RUNS
    )


@pytree
class RelativeConfig(Settings):
    """The first matching of rows, by relative representations."""

    rows: int = count(2_048, "Rows of X matched by relative representations; 0 for all rows.")
    num_neighbors: int = count(50, "Nearest rows of Y averaged into a pseudo-partner.", low=1, high=_MAX_NEIGHBORS)


@pytree
class ComponentsConfig(Settings):
    """The second search, from independent components, for data on which the first one falls short."""

    num_runs: int = count(
        24,
        "Runs of independent component analysis; 0 leaves the second search and guided runs out.",
        high=_MAX_RUNS,
    )
    num_groups: int = count(
        2,
        "Groups of runs. All runs vote on a map, and each of several groups on one of its own; the best is kept.",
        low=1,
        high=_MAX_RUNS,
    )
    ica_steps: int = count(
        50, "Steps of each independent component analysis of the second search.", low=1, high=_MAX_STEPS
    )
    num_starts: int = count(12, "Starts of the matching of axes per run.", low=1, high=_MAX_RUNS)
    match_steps: int = count(60, "Steps per start of the matching of axes.", low=1, high=_MAX_STEPS)
    rounds: int = count(
        2, "Number of times that every run is matched again from the sum of the others.", high=_MAX_RUNS
    )
    likeness: float = number(
        0.006, "Weight of what makes two axes alike by themselves, beside their relations to other axes."
    )
    guided_runs: int = count(
        4,
        "Runs that match axes once more, guided by the chosen map, where the second search was not used.",
        high=_MAX_RUNS,
    )
    guided_ica_steps: int = count(
        30, "Steps of each independent component analysis of those runs.", low=1, high=_MAX_STEPS
    )
    num_settled: int = count(
        2,
        "Least number of best searches that are settled and averaged where the map is that of a second search.",
        low=1,
        high=_MAX_RUNS,
    )
    below: float = number(
        0.22, "The second search runs where the closeness of the first one, at the finest scale, is less.", high=10.0
    )


@pytree
class PublishedConfig(Settings):
    """The two refinements of the mini-vec2vec paper. A refinement with zero steps is left out."""

    match_steps: int = count(0, "Steps of refine-1: match, Procrustes, smooth.", high=_MAX_STEPS)
    match_rows: int = count(1_000, "Rows of X drawn per step of refine-1.", low=1)
    num_neighbors: int = count(
        50, "Nearest rows of Y averaged into a pseudo-partner in refine-1.", low=1, high=_MAX_NEIGHBORS
    )
    cluster_steps: int = count(
        0, "Rounds of refine-2: k-means of X, k-means of Y from there, Procrustes, smooth.", high=_MAX_RUNS
    )
    num_clusters: int = count(500, "Number of k-means clusters in refine-2.", low=2, high=_MAX_NEIGHBORS)
    lloyd_steps: int = count(12, "Lloyd iterations of each k-means in refine-2.", high=_MAX_RUNS)
    smoothing: float = number(0.5, "Share a of the new map in W <- (1 - a) W + a W_new.", high=1.0)
    project: bool = switch(True, "Return the nearest semi-orthogonal map instead of the smoothed average.")

    @property
    def is_used(self) -> bool:
        """Whether either refinement has any step."""
        return bool(self.match_steps or self.cluster_steps)


@pytree
class AnnealingConfig(Settings):
    """The annealed refinement: directions that are matched well decide first, the others join later."""

    steps: int = count(
        100, "Steps of the annealed refinement; small data sets take up to four times as many.", high=_MAX_STEPS
    )
    rows: int = count(2_048, "Rows of each space drawn per annealed step, at most half of the rows.", low=2)
    num_neighbors: int = count(
        3, "Nearest rows averaged into a pseudo-partner per annealed step.", low=1, high=_MAX_NEIGHBORS
    )
    power: float = number(
        4.0,
        "Power of the correlation that weights a direction at first; falls to whitening.reliability_power.",
        high=8.0,
    )
    late_power: float = number(
        1.0, "As annealing.power, where the refinement starts from a map that is nearly right.", high=8.0
    )
    left_out: float = number(
        0.8,
        "Share of the rows without a vote at first in the second search: regions that are matched worst; falls to 0.",
        high=1.0,
    )


@pytree
class SettlingConfig(Settings):
    """The CSLS refinement that settles the chosen map: first on samples, then on all rows."""

    steps: int = count(8, "Steps of the CSLS refinement on samples of the rows.", high=_MAX_STEPS)
    rows: int = count(8_192, "Rows of each space drawn per step of the CSLS refinement on samples.", low=2)
    min_neighbors: int = count(
        2, "Minimum number of nearest rows averaged into a pseudo-partner by CSLS.", low=1, high=_MAX_NEIGHBORS
    )
    ample_rows: int = count(
        40_000, "Rows per space from which on settling.min_neighbors suffices; smaller spaces average more rows."
    )
    whole_steps: int = count(2, "Last steps of the CSLS refinement, on all rows.", high=_MAX_RUNS)
    whole_rows: int = count(
        32_768, "Maximum number of rows of each space per CSLS step on all rows, and of polishing.", low=2
    )


@pytree
class PolishingConfig(Settings):
    """Polishing, the contrastive refinement that ends a fit: a row comes nearer to its partner than others are."""

    steps: int = count(
        50,
        "Maximum number of gradient steps; 0 leaves polishing out, and so do published refinements.",
        high=_MAX_STEPS,
    )
    max_passes: int = count(
        4, "Maximum number of passes over the pseudo-pairs; more passes overfit small data sets.", low=1, high=_MAX_RUNS
    )
    batch_rows: int = count(
        2_048,
        "Pseudo-pairs per gradient step; the rows of a batch are negatives of each other.",
        low=2,
        high=_MAX_BATCH,
    )
    num_neighbors: int = count(2, "Nearest rows averaged into a pseudo-partner by CSLS.", low=1, high=_MAX_NEIGHBORS)
    learning_rate: float = number(
        0.015, "Length of the first step, relative to the norm of the map; falls to 0 by a cosine.", high=1.0
    )
    logit_scale: float = number(20.0, "Factor of the cosines in InfoNCE, the inverse of its temperature.", high=1e3)
    power: float = number(
        0.5, "A pseudo-pair whose CSLS is one standard deviation higher weighs e to this power times as much.", high=8.0
    )


@pytree
class WhiteningConfig(Settings):
    """How the settled map weights and scales directions.

    Refinements compare rows in the same way; settling few rows of both spaces takes up to three times the power.
    """

    power: float = number(0.25, "Each direction is scaled by its variance to minus this power.", high=0.5)
    reliability_power: float = number(
        0.4, "Each direction is weighted by the correlation of its matched rows to this power.", high=8.0
    )


@pytree
class Config(Settings):
    """Every choice of `mv2v_jax.align`; the defaults are the ``default`` preset.

    Sample sizes larger than the data mean all rows. A stage with zero steps is left out.

    Example:
        >>> config = Config.fast().replace(whitening={"power": 0.0})
        >>> config.max_rows, config.whitening.power, config.annealing.steps
        (32768, 0.0, 60)
    """

    max_rows: int = count(131_072, "Maximum number of rows per space; larger spaces are sampled at random.", low=2)
    search_dims: int = count(128, "Number of principal directions per space that the search sees; 0 for all.")
    held_out_rows: int = count(1_000, "Rows per space kept out of the fit to score it; at most a tenth of the rows.")
    pair_weight: float = number(
        1.0, "Weight of a known pair, if any are given; 0 uses them to match clusters only.", high=1e9
    )
    anchors: AnchorConfig = part(AnchorConfig, "Anchor sets.")
    relative: RelativeConfig = part(RelativeConfig, "First matching, by relative representations.")
    components: ComponentsConfig = part(ComponentsConfig, "Second search, from independent components.")
    published: PublishedConfig = part(PublishedConfig, "Refinements of the mini-vec2vec paper.")
    annealing: AnnealingConfig = part(AnnealingConfig, "Annealed refinement.")
    settling: SettlingConfig = part(SettlingConfig, "CSLS refinement of the chosen map.")
    polishing: PolishingConfig = part(PolishingConfig, "Polishing: contrastive refinement of the settled map.")
    whitening: WhiteningConfig = part(WhiteningConfig, "Scale and weight of directions.")

    @classmethod
    def fast(cls) -> Self:
        """At most half the time of the default: fewer anchor sets and steps, smaller samples."""
        return cls().replace(
            max_rows=32_768,
            anchors={"num_sets": 20, "kept_sets": 10},
            components={"num_runs": 12, "num_groups": 1, "guided_runs": 0},
            annealing={"steps": 60},
            settling={"rows": 4_096, "whole_steps": 1, "whole_rows": 16_384},
            polishing={"steps": 25, "batch_rows": 1_024},
        )

    @classmethod
    def notebook(cls) -> Self:
        """The values of the published notebook of mini-vec2vec (arXiv 2510.02348)."""
        return cls().replace(
            search_dims=0,
            anchors={"num_clusters": 20, "rows": 10_000, "num_starts": 30, "kept_sets": 30},
            relative={"rows": 0},
            components={"num_runs": 0, "guided_runs": 0},
            published={"match_steps": 100, "cluster_steps": 1, "project": False},
            annealing={"steps": 0},
            settling={"steps": 0, "whole_steps": 0},
            polishing={"steps": 0},
            whitening={"power": 0.0},
        )

    @classmethod
    def paper(cls) -> Self:
        """The values of the mini-vec2vec paper: fewer refine-1 steps than the notebook, each on ten times the rows."""
        return cls.notebook().replace(published={"match_steps": 75, "match_rows": 10_000})

    @classmethod
    def preset(cls, name: str) -> Self:
        """A preset by its name: ``default``, ``fast``, ``notebook`` or ``paper``."""
        if name not in PRESETS:
            raise InputError(f"preset must be one of {', '.join(PRESETS)}, found {name!r}")
        return cls() if name == "default" else getattr(cls, name)()


PRESETS = ("default", "fast", "notebook", "paper")


def check_config(config: Config) -> None:
    """Raise `InputError` naming the first setting that is out of range, what was expected and what was found."""
    check_settings(config, Config)
    num_clusters = config.anchors.num_clusters
    starts = config.anchors.num_starts * num_clusters**2
    if starts > _MAX_START_NUMBERS:
        raise InputError(
            f"anchors.num_starts times anchors.num_clusters squared must be at most {_MAX_START_NUMBERS:,}, found "
            f"{starts:,}; use fewer starts or clusters"
        )
    for name, rows in (("max_rows", config.max_rows), ("anchors.rows", config.anchors.rows)):
        if rows < num_clusters:
            raise InputError(f"{name} must be at least anchors.num_clusters ({num_clusters}), found {rows}")
