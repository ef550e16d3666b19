"""The whole method on one screen."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mv2v_jax.anchors import AnchorSets, match_anchor_sets, select_anchors
from mv2v_jax.anneal import refine_annealed, refine_csls
from mv2v_jax.csls import mean_csls
from mv2v_jax.matching import match_relative
from mv2v_jax.preprocess import Space, draw_rows, fit_space, unit_rows
from mv2v_jax.procrustes import polar, procrustes
from mv2v_jax.pytree import pytree
from mv2v_jax.refine import Refined, refine_clusters, refine_matching
from mv2v_jax.types import AlignInfo, AlignResult, Config, LinearMap
from mv2v_jax.validate import check_config, check_fitting_rows

# Rows of each space behind the final objective.
_OBJECTIVE_ROWS = 4_096


@pytree
class Keys:
    """One key per stage that draws, split once."""

    anchors: jax.Array
    matching: jax.Array
    refine_matching: jax.Array
    refine_annealed: jax.Array
    refine_csls: jax.Array
    refine_clusters: jax.Array
    objective: jax.Array


def split_keys(key: jax.Array) -> Keys:
    names = [field.name for field in dataclasses.fields(Keys)]
    return Keys(**dict(zip(names, jax.random.split(key, len(names)), strict=True)))


class Refinement(NamedTuple):
    """One refinement stage: its name, its key's name, its number of steps under a config, and the function."""

    name: str
    num_steps: Callable[[Config], int]
    run: Callable[..., Refined]


REFINEMENTS = (
    Refinement("refine_matching", lambda config: config.match_steps, refine_matching),
    Refinement("refine_annealed", lambda config: config.anneal_steps, refine_annealed),
    Refinement("refine_csls", lambda config: config.csls_steps, refine_csls),
    Refinement("refine_clusters", lambda config: config.cluster_steps, refine_clusters),
)


def initial_map(key, x: jax.Array, y: jax.Array, sets: AnchorSets, *, config: Config):
    """Anchors that agree, relative representations, Procrustes: the first map ``[d_x, d_y]`` and the anchors."""
    anchors = select_anchors(sets, config=config)
    drawn = draw_rows(key, x, config.matching_rows or x.shape[0])
    partners = match_relative(drawn, y, anchors.x, anchors.y, num_neighbors=config.num_neighbors)
    return procrustes(drawn, partners.rows), anchors


def finish(key, space_x: Space, space_y: Space, matrix, sets, anchors, trajectory, *, config: Config) -> AlignResult:
    """Project, score and pack the result."""
    W = polar(matrix) if config.project else matrix
    key_x, key_y = jax.random.split(key)
    sample_x = draw_rows(key_x, space_x.rows, _OBJECTIVE_ROWS)
    sample_y = draw_rows(key_y, space_y.rows, _OBJECTIVE_ROWS)
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    return AlignResult(
        map=LinearMap(W=W, mean_x=space_x.mean, mean_y=space_y.mean, scale_x=space_x.scale, scale_y=space_y.scale),
        objective=mean_csls(unit_rows(sample_x @ W), sample_y),
        trajectory=trajectory,
        info=AlignInfo(
            anchor_objective=sets.objective,
            anchor_agreement=anchors.agreement,
            anchor_kept=anchors.kept,
            zero_rows_x=space_x.zero_rows,
            zero_rows_y=space_y.zero_rows,
            orthogonality=jnp.linalg.norm(gram - jnp.eye(gram.shape[0], dtype=W.dtype)),
            all_finite=jnp.isfinite(W).all(),
        ),
    )


@jax.jit
def _align(key: jax.Array, x: jax.Array, y: jax.Array, config: Config) -> AlignResult:
    keys = split_keys(key)
    space_x, space_y = fit_space(x), fit_space(y)
    sets = match_anchor_sets(keys.anchors, space_x.rows, space_y.rows, config=config)
    matrix, anchors = initial_map(keys.matching, space_x.rows, space_y.rows, sets, config=config)
    trajectory = {}
    for name, num_steps, run in REFINEMENTS:
        if num_steps(config):
            refined = run(getattr(keys, name), space_x.rows, space_y.rows, matrix, config=config)
            matrix, trajectory[name] = refined.matrix, refined.objective
    return finish(keys.objective, space_x, space_y, matrix, sets, anchors, trajectory, config=config)


def align(key: jax.Array, x: jax.Array, y: jax.Array, config: Config | None = None) -> AlignResult:
    """Learn a linear map from one embedding space to another without a single known pair.

    One pure function: it jits, vmaps over keys, exports, and compiles once per shapes and static config.

    Args:
        key: random key, from `jax.random.key`.
        x: ``[n, d_x]`` raw rows of the source encoder; float16, bfloat16, float32 or float64.
        y: ``[m, d_y]`` raw rows of the target encoder, of other texts of the same kind.
        config: a `Config`; the default preset if none. Its integers are static, its floats traced.

    Returns:
        `AlignResult`: the map, its label-free objective, the trajectory of every stage, and per-stage information.

    Raises:
        InputError: a `ValueError`; shapes, dtypes or config out of range, and, where the arrays are concrete, NaN,
            infinity or rows that are all equal.

    Source: mini-vec2vec (arXiv 2510.02348); the default preset departs from it as `Config` and `anneal` say.
    """
    config = Config() if config is None else config
    check_config(config)
    x, y = check_fitting_rows(x, "x", config), check_fitting_rows(y, "y", config)
    return _align(key, jnp.asarray(x), jnp.asarray(y), config)
