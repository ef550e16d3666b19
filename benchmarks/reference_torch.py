"""The two slow operations of the published method on torch, the library of its notebook; needs the extra ``torch``."""

import numpy as np
import torch

from benchmarks import reference


def procrustes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`reference.procrustes` on torch."""
    u, _, vt = torch.linalg.svd(torch.from_numpy(x).T @ torch.from_numpy(y), full_matrices=False)
    return (u @ vt).numpy()


def neighbor_means(queries: np.ndarray, bank: np.ndarray, values: np.ndarray, num_neighbors: int) -> np.ndarray:
    """`reference.neighbor_means` on torch."""
    rows, columns = torch.from_numpy(bank), torch.from_numpy(values)
    means = [
        columns[torch.topk(block @ rows.T, min(num_neighbors, len(rows)), sorted=False).indices].mean(dim=1)
        for block in torch.split(torch.from_numpy(queries), reference.BLOCK_ROWS)
    ]
    return torch.cat(means).numpy()


TORCH = reference.Library(procrustes, neighbor_means)
