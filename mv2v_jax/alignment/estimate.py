"""What a stage hands to the next one: a map, or a cross-covariance whose polar factor is the map."""

import dataclasses

import jax

from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.pytree import pytree


@pytree
class Estimate:
    """The current estimate of the map.

    The published refinements smooth maps; the annealed and the CSLS refinement average cross-covariances, whose
    singular values show which directions are matched well.

    Attributes:
        matrix: ``[d_x, d_y]``.
        is_map: whether ``matrix`` is a map; otherwise it is a cross-covariance of pseudo-pairs. Static.
    """

    matrix: jax.Array
    is_map: bool = dataclasses.field(metadata={"static": True})

    def as_map(self, *, project: bool = True) -> jax.Array:
        """The map ``[d_x, d_y]``, before directions are weighted.

        Args:
            project: whether a map that is no longer semi-orthogonal becomes the nearest one that is.
        """
        return polar(self.matrix) if project or not self.is_map else self.matrix


@pytree
class Refined:
    """What a refinement returns.

    Attributes:
        estimate: the refined `Estimate`.
        objective: ``[steps]``, the stage's label-free objective at every step.
    """

    estimate: Estimate
    objective: jax.Array
