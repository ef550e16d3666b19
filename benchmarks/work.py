"""Operations and bytes of a JAX function, counted from its jaxpr.

`jax.experimental.roofline` counts the body of a loop once and knows no decomposition; most work of a fit is in both.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

# Operations that read their operands from memory and write their results to it, whatever a compiler fuses.
_MOVING = ("gather", "scatter", "scatter-add", "scatter_add", "dynamic_slice", "sort", "top_k", "cumsum", "argsort")


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of a function.

    Attributes:
        matmul_flop: operations of matrix products of numbers of 32 or more bits.
        half_flop: operations of matrix products of 16-bit numbers, whatever the precision of their sums.
        decomposition_flop: operations of singular value and eigenvalue decompositions, by the counts of Golub and
            Van Loan, Matrix Computations.
        other_flop: one for every entry of the result of any other operation.
        bytes: what matrix products, decompositions, gathers and sorts read and write; all other operations are taken
            to be fused.
    """

    matmul_flop: float = 0.0
    half_flop: float = 0.0
    decomposition_flop: float = 0.0
    other_flop: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def times(self, count: int) -> "Work":
        """The same work ``count`` times."""
        return Work(*(count * value for value in dataclasses.astuple(self)))


def _bytes(variables: Any) -> int:
    return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in variables if hasattr(v.aval, "shape"))


def _entries(variables: Any) -> int:
    return sum(math.prod(v.aval.shape) for v in variables if hasattr(v.aval, "shape"))


def _decomposition_flop(name: str, shape: tuple[int, ...]) -> float:
    large, small = max(shape[-2:]), min(shape[-2:])
    one = 9 * small**3 if name == "eigh" else 6 * large * small**2 + 20 * small**3
    return math.prod(shape[:-2]) * one


def _inner_jaxprs(equation: Any) -> list[Any]:
    found = [value for value in equation.params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
    return [value.jaxpr if hasattr(value, "jaxpr") else value for value in found]


def _count_equation(equation: Any) -> Work:
    name, inputs, outputs = equation.primitive.name, equation.invars, equation.outvars
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        depth = math.prod(inputs[0].aval.shape[axis] for axis in contracted)
        flop, moved = 2.0 * _entries(outputs) * depth, _bytes(inputs) + _bytes(outputs)
        if inputs[0].aval.dtype.itemsize == 2:
            return Work(half_flop=flop, bytes=moved)
        return Work(matmul_flop=flop, bytes=moved)
    if name in ("svd", "eigh"):
        flop = _decomposition_flop(name, inputs[0].aval.shape)
        return Work(decomposition_flop=flop, bytes=_bytes(inputs) + _bytes(outputs))
    if name == "cond":
        branches = [_count(branch.jaxpr) for branch in equation.params["branches"]]
        return max(branches, key=lambda work: work.matmul_flop + work.half_flop + work.other_flop)
    inner = _inner_jaxprs(equation)
    if inner:
        total = Work()
        for jaxpr in inner:
            total = total + _count(jaxpr)
        return total.times(equation.params.get("length", 1) if name == "scan" else 1)
    if name in _MOVING:
        # A gather reads only the entries that it returns.
        read = _bytes(outputs) if name in ("gather", "dynamic_slice") else _bytes(inputs)
        return Work(other_flop=_entries(outputs), bytes=read + _bytes(outputs))
    return Work(other_flop=_entries(outputs))


def _count(jaxpr: Any) -> Work:
    total = Work()
    for equation in jaxpr.eqns:
        total = total + _count_equation(equation)
    return total


def count_work(fun: Callable[..., Any], *args: Any) -> Work:
    """`Work` of ``fun(*args)``, without running it.

    The number of steps of a `while` loop is unknown before it runs, so its body counts once. The only such loop of a
    fit is the binary search that seeds k-means.
    """
    return _count(jax.make_jaxpr(fun)(*args).jaxpr)
