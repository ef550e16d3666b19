"""The searches that a report compares a map with: those of its fit, or new ones on the same rows."""

from typing import Any, NamedTuple

import jax
import numpy as np

from mv2v_jax.alignment.api import Restarts, check_restarts, restart_keys, restart_maps
from mv2v_jax.alignment.fit import search
from mv2v_jax.alignment.score import Evidence
from mv2v_jax.alignment.stage_by_stage import StageByStage
from mv2v_jax.config import Config
from mv2v_jax.data.inputs import check_inputs, pad_inputs
from mv2v_jax.progress import OnStep

# New searches have numbers that no fit reaches, so that none of them repeats one of its restarts.
_FIRST_NEW = 1_000_000


class Searches(NamedTuple):
    """Searches that have not seen the held-out rows.

    Attributes:
        evidence: `Evidence` of every search, each field ``[r]``.
        maps: ``[r, d_x, d_y]``, their maps before settling, in the directions that were searched.
        agreement: ``[r, r]``, agreement of every two in the finer directions, see `score.fine_agreement`.
        chosen: number of the search of the best score.
        are_independent: ``[r]`` bool, whether the map of the report did not come from this search.
        are_new: whether the searches were made for the report.
    """

    evidence: Evidence
    maps: jax.Array
    agreement: np.ndarray
    chosen: int
    are_independent: np.ndarray
    are_new: bool

    def best_evidence(self) -> Evidence:
        """Evidence of the search of the best score."""
        return jax.tree.map(lambda value: np.asarray(value)[self.chosen], self.evidence)


def searches_of_fit(fits: Restarts) -> Searches:
    """The restarts of a fit whose maps were kept; all but the chosen one are independent of its map."""
    assert fits.maps is not None
    chosen = int(fits.chosen)
    return Searches(
        evidence=fits.evidence,
        maps=fits.maps.W,
        agreement=np.asarray(fits.agreement),
        chosen=chosen,
        are_independent=np.arange(len(fits.agreement)) != chosen,
        are_new=False,
    )


def search_again(x: Any, y: Any, config: Config, seed: int, num_searches: int, on_step: OnStep) -> Searches:
    """Search the rows ``x [n, d_x]`` and ``y [m, d_y]`` again, from draws that no fit has used.

    Raises:
        InputError: the rows cannot be fitted, or too few of them could be held out.
    """
    key = jax.random.key(seed)
    x, y, seeds = check_inputs(key, x, y, config)
    check_restarts(num_searches, min(x.shape[0], y.shape[0]), config)
    padded = pad_inputs(x, y, seeds, config)
    searched = search(StageByStage(on_step), restart_keys(key, _FIRST_NEW, num_searches), *padded, config)
    return Searches(
        evidence=searched.found.evidence,
        maps=restart_maps(searched, config).W,
        agreement=np.asarray(searched.choice.agreement),
        chosen=int(searched.choice.chosen),
        are_independent=np.ones(num_searches, bool),
        are_new=True,
    )
