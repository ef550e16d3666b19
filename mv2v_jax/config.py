"""Configuration and results: frozen, and pytrees throughout.

Of a `Config`, the integers and booleans are static (they decide shapes and which code is compiled); the floats are
traced, so that sweeping them compiles nothing and they can be vmapped over.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mv2v_jax.errors import InputError


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

    max_rows: int = _static(131_072, "rows of each space that take part, drawn at random from larger ones")

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
        max_rows=32_768,
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


_MIN = {
    "max_rows": 2,
    "num_anchor_sets": 1,
    "num_clusters": 2,
    "anchor_rows": 2,
    "num_starts": 1,
    "kept_sets": 1,
    "num_neighbors": 1,
    "match_rows": 1,
    "match_neighbors": 1,
    "anneal_rows": 2,
    "csls_rows": 2,
    "csls_neighbors": 1,
    "whole_rows": 2,
    "anneal_neighbors": 1,
    "refine_clusters": 2,
}


_FLOAT_RANGE = {
    "anneal_power": (0.0, 8.0),
    "pair_weight": (0.0, 1e9),
    "smoothing": (0.0, 1.0),
    "reliability_power": (0.0, 8.0),
    "whitening_power": (0.0, 0.5),
}


def check_counts(config: Any, at_least: Mapping[str, int]) -> None:
    """Raise `InputError` unless the named fields of a config are whole numbers, each of at least so much."""
    for name, least in at_least.items():
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, found {value!r}")


def check_config(config: Config) -> None:
    """Raise `InputError` naming the first field that is out of range, what was expected and what was found."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _FLOAT_RANGE:
            low, high = _FLOAT_RANGE[field.name]
            # Traced or batched floats cannot be looked at; they are the caller's own sweep.
            is_array = isinstance(value, (jax.Array, np.ndarray))
            if not is_array and not (isinstance(value, (int, float, np.floating, np.integer)) and low <= value <= high):
                raise InputError(f"{field.name} must be from {low} to {high}, found {value!r}")
        elif field.type is int:
            check_counts(config, {field.name: _MIN.get(field.name, 0)})
    for name in ("max_rows", "anchor_rows"):
        if getattr(config, name) < config.num_clusters:
            raise InputError(
                f"{name} must be at least num_clusters ({config.num_clusters}), found {getattr(config, name)}"
            )
    if config.returns_cross and not config.project:
        raise InputError(
            "project must be true where anneal_steps, csls_steps or whole_steps is not 0 (these stages return a "
            f"cross-covariance, not a map), found project={config.project}"
        )
