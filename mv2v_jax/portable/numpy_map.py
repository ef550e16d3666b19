"""A map on NumPy and safetensors alone: read it, apply it to rows, save it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mv2v_jax.data.map_tensors import as_text, read_profiles, read_tensors, write_tensors
from mv2v_jax.errors import InputError
from mv2v_jax.finish import Finish, make_finish
from mv2v_jax.frame import Frame, check_frame
from mv2v_jax.host_arrays import as_host_array
from mv2v_jax.profiles.mismatch import find_mismatch
from mv2v_jax.profiles.profile import Profiles
from mv2v_jax.similarity import Metric

# Numbers per block of rows, so that temporary arrays stay small however many rows are mapped.
_BLOCK_NUMBERS = 2**22


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PortableMap:
    """A linear map between two embedding spaces on NumPy, the same as `mv2v_jax.LinearMap`.

    Attributes:
        W: ``[d_x, d_y]``, from centred unit rows of the source to centred unit rows of the target.
        mean_x: ``[d_x]``, mean of the source.
        mean_y: ``[d_y]``, mean of the target.
        scale_x: scalar, mean length of centred rows of the source.
        scale_y: scalar, mean length of centred rows of the target.
        metadata: facts about the map as text, such as its verdict; empty for a map of a fit in memory.
        profiles: what the fitting rows of source and target looked like; ``None`` where the file holds none.
    """

    W: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    scale_x: np.ndarray
    scale_y: np.ndarray
    metadata: Mapping[str, str] = field(default_factory=dict)
    profiles: Profiles = (None, None)

    def __repr__(self) -> str:
        return f"PortableMap({self.W.shape[0]} to {self.W.shape[1]} dimensions, {self.W.dtype})"

    def invert(self) -> "PortableMap":
        """The map from target to source, as `mv2v_jax.invert`; the metadata stay those of the fit."""
        return PortableMap(
            W=self.W.T,
            mean_x=self.mean_y,
            mean_y=self.mean_x,
            scale_x=self.scale_y,
            scale_y=self.scale_x,
            metadata=self.metadata,
            profiles=self.profiles[::-1],
        )

    def apply(
        self,
        rows: Any,
        *,
        frame: Frame = "centred",
        inverse: bool = False,
        metric: Metric = "cosine",
        dims: int | None = None,
    ) -> np.ndarray:
        """Map raw rows, as `mv2v_jax.apply`.

        Args:
            rows: ``[n, d_x]``, or a single row ``[d_x]``, of the source encoder and of any floating dtype; rows of the
                target encoder with ``inverse``.
            frame: ``"centred"`` for unit rows with the mean of the space they are mapped into removed; ``"target"``
                for rows that can be compared by cosine with raw rows of that space.
            inverse: map rows of the target into the source.
            metric: how the rows are compared. ``"dot"`` and ``"l2"`` need the frame ``"target"`` and give rows the one
                length that the rows of that space have. Where these have several, the length of each row is predicted
                from its direction.
            dims: numbers that are kept of each mapped row, for an index that holds prefixes of a Matryoshka encoder.
                Prefixes are scaled to the one length of the rows of that space, if they have one.

        Returns:
            ``[n, d_y]``, or ``[d_y]`` for a single row, in the dtype of ``rows``; ``dims`` for ``d_y``. Zero rows
            become zero rows (centred) or the mean (target). A row with NaN or infinity becomes a row of NaN.

        Raises:
            InputError: wrong shape or dtype, masked values, unknown frame or metric, ``dims`` not below ``d_y``, or a
                metric other than cosine with centred rows or a map that remembers no lengths.

        Example:
            >>> zero, one = np.zeros(2, np.float32), np.float32(1)
            >>> turn = np.array([[0, 1], [-1, 0]], np.float32)
            >>> PortableMap(W=turn, mean_x=zero, mean_y=zero, scale_x=one, scale_y=one).apply([[2.0, 0.0]]).tolist()
            [[0.0, 1.0]]
        """
        if inverse:
            return self.invert().apply(rows, frame=frame, metric=metric, dims=dims)
        check_frame(frame)
        finish = make_finish(frame, metric, dims, self.profiles[1], self.W.shape[1])
        rows = self._check(as_host_array(rows, "rows"))
        return self._map_all(rows[None], finish)[0] if rows.ndim == 1 else self._map_all(rows, finish)

    def _map_all(self, rows: np.ndarray, finish: Finish) -> np.ndarray:
        d_x, d_y = self.W.shape
        mapped = np.empty((len(rows), finish.dims or d_y), rows.dtype)
        block = max(1, _BLOCK_NUMBERS // max(d_x, d_y))
        for start in range(0, len(rows), block):
            mapped[start : start + block] = finish(self._map(rows[start : start + block], finish.frame))
        return mapped

    def _check(self, rows: np.ndarray) -> np.ndarray:
        d_x = self.W.shape[0]
        if rows.ndim not in (1, 2) or rows.shape[-1] != d_x:
            raise InputError(f"rows must be [n, {d_x}] for this map, found shape {list(rows.shape)}")
        # bfloat16 is a type of its own, of kind V.
        if rows.dtype.kind not in "fV":
            raise InputError(f"rows must hold floating-point embeddings, found dtype {rows.dtype}")
        return rows

    def _map(self, rows: np.ndarray, frame: Frame) -> np.ndarray:
        rows = rows.astype(self.W.dtype)
        # A matrix product may spread NaN over the rows that it computes together.
        finite = np.isfinite(rows).all(axis=1, keepdims=True)
        return np.where(finite, self._map_finite(np.where(finite, rows, 0), frame), np.nan)

    def _map_finite(self, rows: np.ndarray, frame: Frame) -> np.ndarray:
        present = (rows != 0).any(axis=1, keepdims=True)
        mapped = _unit_rows(np.where(present, _unit_rows(rows - self.mean_x), 0) @ self.W)
        return mapped if frame == "centred" else self.mean_y + self.scale_y * mapped

    def find_mismatch(self, rows: Any, *, inverse: bool = False) -> str | None:
        """What tells raw rows from those that the map was fitted on, in one clause; ``None`` if nothing does.

        It finds rows of another encoder or of the other side, in another scale, or truncated. Other texts of the same
        encoder are no mismatch. At most 2,048 rows are looked at; the encoder is recognised from 10 rows on.

        Args:
            rows: ``[n, d_x]``, or a single row ``[d_x]``, as for `apply`.
            inverse: the rows are of the target.

        Raises:
            InputError: wrong shape or dtype, masked values, or the map has no profile of that space.
        """
        if inverse:
            return self.invert().find_mismatch(rows)
        rows = np.atleast_2d(self._check(as_host_array(rows, "rows")))
        profile, other = self.profiles
        if profile is None:
            raise InputError("the map must remember its spaces, found no profile; save it with save_map(rows=(x, y))")
        return find_mismatch(profile, rows, other)

    def save(self, path: str | Path) -> None:
        """Write the map as `mv2v_jax.save_map` does, whole or not at all.

        Raises:
            InputError: the map holds NaN or infinity, or the file cannot be written.
        """
        tensors = {name: getattr(self, name) for name in ("W", "mean_x", "mean_y", "scale_x", "scale_y")}
        write_tensors(
            Path(path),
            tensors,
            dict(self.metadata),
            self.profiles,
        )


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay zero."""
    # Scaled by a power of two, which rounds nothing, so that no square overflows or vanishes.
    rows = np.ldexp(rows, -np.frexp(np.abs(rows).max(axis=1, keepdims=True, initial=0))[1])
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return rows / np.where(lengths > 0, lengths, 1)


def load(path: str | Path) -> PortableMap:
    """Read a map that ``mv2v align`` or `mv2v_jax.save_map` wrote, without JAX.

    Raises:
        InputError: there is no such file, it is not a map or is damaged, its shapes do not fit together, or it holds
            NaN or infinity.
    """
    tensors, metadata = read_tensors(Path(path))
    return PortableMap(**tensors, metadata=metadata, profiles=read_profiles(Path(path)))


def from_map(linear_map: Any, metadata: Mapping[str, Any] | None = None) -> PortableMap:
    """The portable map of a `mv2v_jax.LinearMap` in memory.

    Args:
        linear_map: the map.
        metadata: facts about it, as for `mv2v_jax.save_map`.

    Raises:
        InputError: it is no map.
    """
    if not hasattr(linear_map, "W"):
        hint = "; pass its map" if hasattr(linear_map, "map") else ""
        raise InputError(f"linear_map must be a LinearMap, found {type(linear_map).__name__}{hint}")
    source, target = linear_map.source, linear_map.target
    return PortableMap(
        W=np.asarray(linear_map.W),
        mean_x=np.asarray(source.mean),
        mean_y=np.asarray(target.mean),
        scale_x=np.asarray(source.scale),
        scale_y=np.asarray(target.scale),
        metadata=as_text(metadata or {}),
    )
