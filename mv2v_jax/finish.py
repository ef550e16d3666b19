"""What is done to mapped rows for an index: the lengths that its metric needs, and the prefix that it keeps."""

from typing import Any, NamedTuple

import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.frame import Frame
from mv2v_jax.profiles.lengths import is_one_length, predict_lengths
from mv2v_jax.profiles.profile import SpaceProfile
from mv2v_jax.similarity import Metric, check_metric, unit


class Finish(NamedTuple):
    """Turns mapped rows into rows for an index, of NumPy or of JAX.

    Attributes:
        frame: frame of the mapped rows.
        metric: how the index compares rows.
        dims: numbers of a row that the index keeps; ``None`` for all.
        profile: of the space that the rows were mapped into.
    """

    frame: Frame = "centred"
    metric: Metric = "cosine"
    dims: int | None = None
    profile: SpaceProfile | None = None

    def __call__(self, rows: Any) -> Any:
        """Mapped rows ``[n, d]`` with the lengths of the space and cut to the prefix, in their dtype."""
        if self.metric == "cosine" and self.dims is None:
            return rows
        finished = rows.astype(np.float64 if rows.dtype == np.float64 else np.float32)
        if self.metric != "cosine":
            finished = self._restore_lengths(finished)
        if self.dims is not None:
            finished = self._cut(finished)
        return finished.astype(rows.dtype)

    def _restore_lengths(self, rows: Any) -> Any:
        assert self.profile is not None
        units, lengths = unit(rows), self.profile.lengths
        if self.profile.length_weights is None or self.profile.length_fit is None:
            return units * lengths[1].astype(units.dtype)
        return units * predict_lengths(units, lengths, self.profile.length_weights, self.profile.length_fit)[:, None]

    def _cut(self, rows: Any) -> Any:
        prefix = rows[:, : self.dims]
        if self.frame == "centred":
            return unit(prefix)
        if self.profile is not None and is_one_length(self.profile.lengths):
            return unit(prefix) * self.profile.lengths[1].astype(prefix.dtype)
        return prefix


def remembers_lengths(profile: SpaceProfile | None) -> bool:
    """Whether rows can be given the lengths of a space: it has one, or a regression was fitted."""
    return profile is not None and (profile.length_weights is not None or is_one_length(profile.lengths))


def make_finish(
    frame: Frame,
    metric: Metric,
    dims: int | None,
    profile: SpaceProfile | None,
    d: int,
    source: str = "the map; fit it again",
) -> Finish:
    """A `Finish`, if it can be done.

    Args:
        frame: frame of the mapped rows.
        metric: how the index compares rows.
        dims: numbers of a row that the index keeps; ``None`` for all.
        profile: of the space that the rows are mapped into.
        d: dimension of that space.
        source: where an error message says that the profile was missing, and how to get one.

    Raises:
        InputError: unknown metric, lengths in the centred frame or of a space that the map does not remember, or a
            prefix that is not shorter than the rows.
    """
    check_metric(metric)
    if metric != "cosine":
        if frame == "centred":
            raise InputError(
                f"the metric {metric} needs rows in the target frame, found the centred one, in which every row has "
                "length 1"
            )
        if not remembers_lengths(profile):
            raise InputError(
                f"the metric {metric} needs the lengths of the rows that are mapped to, found none in {source} from at "
                "least 200 rows"
            )
    is_count = isinstance(dims, int) and not isinstance(dims, bool)
    if dims is not None and not (is_count and 1 <= dims < d):
        raise InputError(f"dims must be from 1 to {d - 1}, fewer than the {d} numbers of a mapped row, found {dims!r}")
    return Finish(frame, metric, dims, profile)
