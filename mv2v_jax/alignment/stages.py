"""The refinement stages in their order, each one line, and the keys of everything that draws."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from mv2v_jax.alignment.estimate import Estimate, Refined
from mv2v_jax.alignment.refine_annealed import (
    again_steps,
    annealing_length,
    guided_steps,
    refine_annealed,
    refine_annealed_again,
    refine_by_region,
    refine_csls,
    refine_guided,
    refine_whole,
    region_steps,
)
from mv2v_jax.alignment.refine_published import refine_clusters, refine_matching
from mv2v_jax.alignment.run import Run
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.config import Config


class Stage(NamedTuple):
    """One refinement stage.

    Attributes:
        name: also the name of its key and of its objective in a trajectory.
        num_steps: its steps, by the rows of the smaller space and the config.
        run: ``run(key, rows, estimate, *, config, steps) -> Refined``.
    """

    name: str
    num_steps: Callable[[int, Config], int]
    run: Callable[..., Refined]

    def advance(self, estimate: Estimate, steps: jax.Array, key: jax.Array, rows: TwoSpaces, config: Config):
        refined = self.run(key, rows, estimate, config=config, steps=steps)
        return refined.estimate, refined.objective


# In their order. All of them see the fitted rows only.
SEARCH_STAGES = (
    Stage("refine_matching", lambda num_rows, config: config.published.match_steps, refine_matching),
    Stage("refine_clusters", lambda num_rows, config: config.published.cluster_steps, refine_clusters),
    Stage("refine_annealed", annealing_length, refine_annealed),
)
# After the components have voted with the map as a guide.
REFINE_GUIDED = Stage("refine_guided", guided_steps, refine_guided)
# From the best map that groups of components voted for.
REFINE_BY_REGION = Stage("refine_by_region", region_steps, refine_by_region)
# These see all rows, the held-out ones among them: the evidence has been gathered by then.
SETTLING_STAGES = (
    Stage("refine_annealed_again", again_steps, refine_annealed_again),
    Stage("refine_csls", lambda num_rows, config: config.settling.steps, refine_csls),
    Stage("refine_whole", lambda num_rows, config: config.settling.whole_steps, refine_whole),
)
Keys = dict[str, jax.Array]
# One key each, by place: reordering them changes every fit.
_KEY_NAMES = (
    "anchors",
    "relative",
    "refine_matching",
    "refine_clusters",
    "refine_annealed",
    "refine_annealed_again",
    "refine_csls",
    "refine_whole",
    "evidence",
    "components",
    "refine_components",
    "guide",
    "refine_guided",
    "refine_by_region",
    "polish",
)


@jax.jit
def split_keys(key: jax.Array) -> Keys:
    """One key per stage that draws, by name. Every call adds kernels to a compiled program."""
    return dict(zip(_KEY_NAMES, jax.random.split(key, len(_KEY_NAMES)), strict=True))


def no_trajectory(
    stages: tuple[Stage, ...], num_rows: int, config: Config, dtype: jax.typing.DTypeLike
) -> dict[str, np.ndarray]:
    """What `refine` returns beside the estimate, for stages that are left out: infinity."""
    numbers = {stage.name: stage.num_steps(num_rows, config) for stage in stages}
    return {name: np.full(number, np.inf, dtype) for name, number in numbers.items() if number}


def refine(run: Run, keys: Keys, stages: tuple[Stage, ...], rows: TwoSpaces, estimate: Estimate, config: Config):
    """Run the stages that have steps, one after the other: the last `Estimate`, and each one's objective by name."""
    trajectory = {}
    for stage in stages:
        num_steps = stage.num_steps(rows.num_rows, config)
        if num_steps:
            arguments = (keys[stage.name], rows, config)
            estimate, trajectory[stage.name] = run.scan(stage.name, stage.advance, estimate, num_steps, *arguments)
    return estimate, trajectory
