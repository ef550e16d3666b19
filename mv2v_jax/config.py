"""Every choice of a fit, grouped by the stage that uses it, with its bounds and its help text.

Integers and booleans are static: they decide shapes and which code is compiled. Floats are traced: sweeping them
compiles nothing, and they can be vmapped over.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.ops.pytree import pytree

_MAX_COUNT = 2**31 - 1


def count(default: int, help: str, *, low: int = 0, high: int = _MAX_COUNT) -> Any:
    """A whole number from ``low`` to ``high``; static."""
    return dataclasses.field(default=default, metadata={"static": True, "help": help, "low": low, "high": high})


def switch(default: bool, help: str) -> Any:
    """True or false; static."""
    return dataclasses.field(default=default, metadata={"static": True, "help": help})


def number(default: float, help: str, *, low: float = 0.0, high: float = math.inf) -> Any:
    """A number from ``low`` to ``high``; traced."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


def part(cls: type, help: str) -> Any:
    """The settings of one stage, a config of its own."""
    return dataclasses.field(default_factory=cls, metadata={"help": help})


class Settings:
    """What all configs have in common."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; those of a stage as a dict.

        Example:
            >>> Config.fast().replace(max_rows=10_000, anchors={"num_clusters": 60}).anchors.num_clusters
            60
        """
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        for name, value in changes.items():
            if name not in fields:
                near = difflib.get_close_matches(name, fields, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; its fields are {', '.join(fields)}"
                raise InputError(f"{type(self).__name__} has no field {name}{hint}")
            nested = isinstance(fields[name], Settings) and isinstance(value, Mapping)
            fields[name] = fields[name].replace(**value) if nested else value
        return type(self)(**fields)


@pytree
class AnchorConfig(Settings):
    """Anchor sets: k-means centres of both spaces, matched to each other by quadratic assignment."""

    num_sets: int = count(30, "Number of anchor sets, each from its own random rows.", low=1)
    num_clusters: int = count(30, "Number of k-means clusters per anchor set.", low=2)
    rows: int = count(5_000, "Rows drawn from each space per anchor set.", low=2)
    lloyd_steps: int = count(12, "Lloyd iterations per k-means of the anchor sets.")
    num_starts: int = count(8, "Starts of the assignment search per anchor set.", low=1)
    search_steps: int = count(150, "Swaps per start of the assignment search.")
    kept_sets: int = count(15, "Number of anchor sets kept: those that agree best with the others.", low=1)


@pytree
class RelativeConfig(Settings):
    """The first matching of rows, by relative representations."""

    rows: int = count(2_048, "Rows of X matched by relative representations; 0 for all rows.")
    num_neighbors: int = count(50, "Nearest rows of Y averaged into a pseudo-partner.", low=1)


@pytree
class ComponentsConfig(Settings):
    """The second search, from independent components, for data on which the first one falls short."""

    num_runs: int = count(18, "Runs of independent component analysis; 0 leaves the second search and guided runs out.")
    ica_steps: int = count(30, "Steps of each independent component analysis.", low=1)
    num_starts: int = count(12, "Starts of the matching of axes per run.", low=1)
    match_steps: int = count(60, "Steps per start of the matching of axes.", low=1)
    rounds: int = count(3, "Number of times that every run is matched again from the sum of the others.")
    likeness: float = number(
        0.006, "Weight of what makes two axes alike by themselves, beside their relations to other axes."
    )
    guided_runs: int = count(
        4, "Runs that match axes once more, guided by the chosen map, where the second search was not used."
    )
    below: float = number(
        0.22, "The second search runs where the closeness of the first one, at the finest scale, is less.", high=10.0
    )


@pytree
class PublishedConfig(Settings):
    """The two refinements of the mini-vec2vec paper. A refinement with zero steps is left out."""

    match_steps: int = count(0, "Steps of refine-1: match, Procrustes, smooth.")
    match_rows: int = count(1_000, "Rows of X drawn per step of refine-1.", low=1)
    num_neighbors: int = count(50, "Nearest rows of Y averaged into a pseudo-partner in refine-1.", low=1)
    cluster_steps: int = count(0, "Rounds of refine-2: k-means of X, k-means of Y from there, Procrustes, smooth.")
    num_clusters: int = count(500, "Number of k-means clusters in refine-2.", low=2)
    lloyd_steps: int = count(12, "Lloyd iterations of each k-means in refine-2.")
    smoothing: float = number(0.5, "Share a of the new map in W <- (1 - a) W + a W_new.", high=1.0)
    project: bool = switch(True, "Return the nearest semi-orthogonal map instead of the smoothed average.")

    @property
    def is_used(self) -> bool:
        """Whether either refinement has any step."""
        return bool(self.match_steps or self.cluster_steps)


@pytree
class AnnealingConfig(Settings):
    """The annealed refinement: directions that are matched well decide first, the others join later."""

    steps: int = count(100, "Steps of the annealed refinement; small data sets take up to four times as many.")
    rows: int = count(2_048, "Rows of each space drawn per annealed step, at most half of the rows.", low=2)
    num_neighbors: int = count(3, "Nearest rows averaged into a pseudo-partner per annealed step.", low=1)
    power: float = number(
        4.0,
        "Power of the correlation that weights a direction at first; falls to whitening.reliability_power.",
        high=8.0,
    )
    late_power: float = number(
        1.0, "As annealing.power, where the refinement starts from a map that is nearly right.", high=8.0
    )


@pytree
class SettlingConfig(Settings):
    """The CSLS refinement that settles the chosen map: first on samples, then on all rows."""

    steps: int = count(8, "Steps of the CSLS refinement on samples of the rows.")
    rows: int = count(8_192, "Rows of each space drawn per step of the CSLS refinement on samples.", low=2)
    min_neighbors: int = count(2, "Minimum number of nearest rows averaged into a pseudo-partner by CSLS.", low=1)
    ample_rows: int = count(
        40_000, "Rows per space from which on settling.min_neighbors suffices; smaller spaces average more rows."
    )
    whole_steps: int = count(2, "Last steps of the CSLS refinement, on all rows.")
    whole_rows: int = count(32_768, "Maximum number of rows of each space per CSLS step on all rows.", low=2)


@pytree
class WhiteningConfig(Settings):
    """How the returned map weights and scales directions; refinements compare rows in the same way."""

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
    whitening: WhiteningConfig = part(WhiteningConfig, "Scale and weight of directions.")

    @classmethod
    def fast(cls) -> Self:
        """At most half the time of the default: fewer anchor sets and steps, smaller samples."""
        return cls().replace(
            max_rows=32_768,
            anchors={"num_sets": 20, "kept_sets": 10},
            components={"num_runs": 12, "guided_runs": 0},
            annealing={"steps": 60},
            settling={"rows": 4_096, "whole_steps": 1, "whole_rows": 16_384},
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


def iterate_fields(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dataclasses.Field, Any]]:
    """Path, field and value of every setting of a config, those of its stages included, in their order."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Settings):
            yield from iterate_fields(value, (*path, field.name))
        else:
            yield (*path, field.name), field, value


def check_settings(config: Any, cls: type) -> None:
    """Raise `InputError` unless ``config`` is of the class and every setting is within its bounds."""
    if not isinstance(config, cls):
        hint = f"; use {cls.__name__}.{config}()" if cls is Config and config in PRESETS[1:] else ""
        article = "an" if cls.__name__[0] in "AEIOU" else "a"
        raise InputError(f"config must be {article} {cls.__name__}, found {config!r}{hint}")
    for path, field, value in iterate_fields(config):
        _check_field(".".join(path), field, value)


def _check_field(name: str, field: dataclasses.Field, value: Any) -> None:
    if field.type is bool:
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, found {value!r}")
        return
    low, high = field.metadata["low"], field.metadata["high"]
    if field.type is int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            bounds = f"of at least {low}" if high == _MAX_COUNT and value != high + 1 else f"from {low} to {high}"
            raise InputError(f"{name} must be a whole number {bounds}, found {value!r}")
    # Traced or batched floats cannot be looked at; they are the caller's own sweep.
    elif not isinstance(value, (jax.Array, np.ndarray)) and not (
        isinstance(value, (int, float, np.floating, np.integer)) and low <= value <= high
    ):
        raise InputError(f"{name} must be a number from {low} to {high}, found {value!r}")


def check_config(config: Config) -> None:
    """Raise `InputError` naming the first setting that is out of range, what was expected and what was found."""
    check_settings(config, Config)
    num_clusters = config.anchors.num_clusters
    for name, rows in (("max_rows", config.max_rows), ("anchors.rows", config.anchors.rows)):
        if rows < num_clusters:
            raise InputError(f"{name} must be at least anchors.num_clusters ({num_clusters}), found {rows}")
