"""How an index compares rows: by cosine, dot product or squared distance."""

from typing import Any, Literal, get_args

import numpy as np

from mv2v_jax.errors import InputError

Metric = Literal["cosine", "dot", "l2"]


def check_metric(metric: str) -> None:
    """Raise `InputError` unless this is a `Metric`."""
    if metric not in get_args(Metric):
        raise InputError(f'metric must be "cosine", "dot" or "l2", found {metric!r}')


def similarities(queries: np.ndarray, rows: np.ndarray, metric: Metric) -> np.ndarray:
    """How near rows ``[n, d]`` are to queries ``[q, d]``, the nearer the larger: ``[q, n]``.

    Under ``"l2"`` this is the squared distance, negative and without the squared length of the query.
    """
    if metric == "cosine":
        return unit(queries) @ unit(rows).T
    products = queries @ rows.T
    return products if metric == "dot" else 2 * products - np.einsum("ij,ij->i", rows, rows)


def paired_similarities(queries: np.ndarray, rows: np.ndarray, metric: Metric) -> np.ndarray:
    """`similarities` of row i and query i: ``[q]``."""
    if metric == "cosine":
        queries, rows = unit(queries), unit(rows)
    products = np.einsum("ij,ij->i", queries, rows)
    return 2 * products - np.einsum("ij,ij->i", rows, rows) if metric == "l2" else products


def largest_similarities(queries: np.ndarray, rows: np.ndarray, metric: Metric) -> np.ndarray:
    """What `paired_similarities` are at most in size, which bounds their rounding."""
    if metric == "cosine":
        return np.ones(len(queries), queries.dtype)
    of_queries, of_rows = (np.linalg.norm(array, axis=1) for array in (queries, rows))
    return of_queries * of_rows if metric == "dot" else of_rows * (2 * of_queries + of_rows)


def unit(rows: Any) -> Any:
    """Rows of length 1, of NumPy or of JAX; zero rows stay zero."""
    namespace = array_namespace(rows)
    lengths = namespace.linalg.norm(rows, axis=1, keepdims=True)
    return rows / namespace.where(lengths > 0, lengths, 1)


def array_namespace(rows: Any) -> Any:
    """The module whose functions take these rows: ``numpy`` or ``jax.numpy``."""
    return np if isinstance(rows, np.ndarray) else rows.__array_namespace__()
