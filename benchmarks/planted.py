"""Two synthetic spaces with a planted map, drawn block by block, so that files may be larger than memory."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

_BLOCK_ROWS = 65_536
# Number of groups of texts, and of the dimensions in which they differ, at most those of the spaces.
_GROUPS, _LATENT = 200, 64
_NOISE = 0.02


class PlantedSpaces(NamedTuple):
    """A latent mixture, and the frames that turn it into rows of two spaces.

    Attributes:
        centers: ``[g, r]``, centres of the groups.
        weights: ``[g]``, probability of each group.
        scales: ``[r]``, standard deviations within a group.
        frames: per space, ``[r, d]`` with orthonormal rows.
        offsets: per space, ``[d]``.
    """

    centers: np.ndarray
    weights: np.ndarray
    scales: np.ndarray
    frames: tuple[np.ndarray, ...]
    offsets: tuple[np.ndarray, ...]


def plant(seed: int, d: int) -> PlantedSpaces:
    """Draw the mixture and the frames of two spaces of ``d`` dimensions."""
    rng = np.random.default_rng(seed)
    rank = min(_LATENT, d)
    # Without a decaying spectrum and uneven groups there would be no geometry to recognise.
    scales = (1 + np.arange(rank)) ** -0.5
    return PlantedSpaces(
        centers=(rng.normal(size=(_GROUPS, rank)) * scales).astype(np.float32),
        weights=rng.dirichlet(np.full(_GROUPS, 3.0)),
        scales=(0.5 * scales).astype(np.float32),
        frames=tuple(np.linalg.qr(rng.normal(size=(d, rank)))[0].T.astype(np.float32) for _ in range(2)),
        offsets=tuple((0.1 * rng.normal(size=d)).astype(np.float32) for _ in range(2)),
    )


def _latent(spaces: PlantedSpaces, rng: np.random.Generator, num_rows: int) -> np.ndarray:
    group = rng.choice(len(spaces.weights), num_rows, p=spaces.weights)
    noise = rng.standard_normal((num_rows, spaces.scales.size), np.float32)
    return spaces.centers[group] + spaces.scales * noise


def _view(spaces: PlantedSpaces, rng: np.random.Generator, latent: np.ndarray, side: int) -> np.ndarray:
    frame, offset = spaces.frames[side], spaces.offsets[side]
    noise = rng.standard_normal((len(latent), frame.shape[1]), np.float32)
    return latent @ frame + offset + np.float32(_NOISE) * noise


def draw_pairs(spaces: PlantedSpaces, seed: int, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both spaces to evaluate a map on, float32 ``[num_rows, d]``, row i with row i."""
    rng = np.random.default_rng([seed, 2])
    latent = _latent(spaces, rng, num_rows)
    return _view(spaces, rng, latent, 0), _view(spaces, rng, latent, 1)


def draw_side(spaces: PlantedSpaces, seed: int, num_rows: int, side: int) -> np.ndarray:
    """Fitting rows of one space, float32 ``[num_rows, d]``; no row is the partner of a row of the other side."""
    rng = np.random.default_rng([seed, side])
    return _view(spaces, rng, _latent(spaces, rng, num_rows), side)


def _write_rows(
    path: Path, spaces: PlantedSpaces, rng: np.random.Generator, num_rows: int, side: int, dtype: str
) -> list[np.ndarray]:
    """Draw rows into a ``.npy`` file, block by block; returns the sum of every stored block, in float64."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (num_rows, spaces.frames[side].shape[1])}
    sums = []
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, num_rows, _BLOCK_ROWS):
            latent = _latent(spaces, rng, min(_BLOCK_ROWS, num_rows - start))
            block = _view(spaces, rng, latent, side).astype(dtype)
            file.write(block.data)
            sums.append(block.sum(axis=0, dtype=np.float64))
    return sums


def write_side(path: Path, spaces: PlantedSpaces, seed: int, num_rows: int, side: int, dtype: str) -> None:
    """Write the rows of `draw_side` to a ``.npy`` file."""
    _write_rows(path, spaces, np.random.default_rng([seed, side]), num_rows, side, dtype)


def write_shards(
    folder: Path, spaces: PlantedSpaces, seed: int, num_rows: int, num_shards: int, side: int, dtype: str
) -> np.ndarray:
    """Write rows of one space to a new folder of ``.npy`` shards; returns their mean ``[d]`` as stored, in float64."""
    folder.mkdir()
    sums: list[np.ndarray] = []
    for shard in range(num_shards):
        part = num_rows * (shard + 1) // num_shards - num_rows * shard // num_shards
        path = folder / f"part-{shard:05d}.npy"
        # Other random numbers than those of `draw_pairs`, whose rows evaluate.
        sums += _write_rows(path, spaces, np.random.default_rng([seed, 3 + side, shard]), part, side, dtype)
    return np.array([math.fsum(column) for column in zip(*sums, strict=True)]) / num_rows
