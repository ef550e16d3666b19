"""The first search: clusters of both spaces are matched, and the map is refined on the fitted rows."""

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.anchors import AnchorInfo, AnchorSets, match_anchor_sets, select_anchors
from mv2v_jax.alignment.estimate import Estimate
from mv2v_jax.alignment.match_relative import first_estimate
from mv2v_jax.alignment.results import ComponentsInfo, Prepared, Searched
from mv2v_jax.alignment.run import Run
from mv2v_jax.alignment.score import Evidence, gather_evidence
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.alignment.stages import SEARCH_STAGES, Keys, refine
from mv2v_jax.config import Config


def _some_sets(_, sets: jax.Array, key: jax.Array, rows: TwoSpaces, config: Config) -> tuple[None, AnchorSets]:
    return None, match_anchor_sets(key, rows, config=config.anchors, sets=sets)


def _first_estimate(key: jax.Array, rows: TwoSpaces, sets: AnchorSets, config: Config) -> tuple[Estimate, AnchorInfo]:
    anchors, info = select_anchors(sets, config=config.anchors)
    return first_estimate(key, rows, anchors, config=config), info


def gather_held_out(key, prepared: Prepared, estimate: Estimate, config: Config) -> Evidence:
    W = estimate.as_map(project=config.published.project)
    return gather_evidence(key, prepared.fitted, prepared.held_out, W)


def search_clusters(run: Run, keys: Keys, prepared: Prepared, config: Config) -> Searched:
    """Anchors, matching and refinement on the fitted rows; and the evidence from the held-out rows."""
    rows = prepared.fitted
    _, sets = run.scan("anchors", _some_sets, None, config.anchors.num_sets, keys["anchors"], rows, config)
    estimate, anchors = run.call("first estimate", _first_estimate, keys["relative"], rows, sets, config)
    estimate, trajectory = refine(run, keys, SEARCH_STAGES, rows, estimate, config)
    evidence = run.call("evidence", gather_held_out, keys["evidence"], prepared, estimate, config)
    no = jnp.zeros((), bool)
    components = ComponentsInfo(tried=no, used=no, agreement=jnp.zeros_like(evidence.score))
    return Searched(estimate=estimate, evidence=evidence, trajectory=trajectory, anchors=anchors, components=components)
