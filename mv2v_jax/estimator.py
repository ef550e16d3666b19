"""An estimator with the conventions of scikit-learn; apart, because importing it needs scikit-learn."""

from typing import Any, Self

import jax
import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError('mv2v_jax.estimator needs scikit-learn: pip install "mv2v_jax[sklearn]"') from error

from mv2v_jax.alignment.api import align_restarts
from mv2v_jax.alignment.score import Reason, Verdict
from mv2v_jax.config import Config
from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.metrics import evaluate
from mv2v_jax.frame import Frame
from mv2v_jax.portable import from_map

_DTYPES = (np.float32, np.float64)


class Aligner(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Learns a linear map between two embedding spaces, without a single known pair.

    As all transformers it goes into pipelines, and can be cloned and pickled. Other than theirs, its ``Y`` has no row
    for each row of ``X``: both are samples of texts of the same kind, of any size.

    Args:
        preset: "fast", "default" or another of `mv2v_jax.Config.preset`.
        config: a `mv2v_jax.Config`, which replaces the preset.
        restarts: number of searches; the best is kept. A single one is never called aligned.
        settled: number of searches whose maps are averaged; after a second search ``components.num_settled`` at least.
        frame: as for `mv2v_jax.apply`.
        random_state: a whole number for the same map each time, or what scikit-learn takes.

    Attributes:
        map_: the `mv2v_jax.LinearMap`, in NumPy arrays.
        verdict_: name of the `mv2v_jax.Verdict`.
        reason_: name of the `mv2v_jax.Reason`.
        confidence_: estimated probability that the map is right.
        estimated_top1_: estimated share of rows that find their true partner first among 2,000.
        n_features_in_: number of columns of ``X``.
    """

    def __init__(
        self,
        preset: str = "default",
        *,
        config: Config | None = None,
        restarts: int = 2,
        settled: int = 1,
        frame: Frame = "centred",
        random_state: Any = 0,
    ) -> None:
        self.preset = preset
        self.config = config
        self.restarts = restarts
        self.settled = settled
        self.frame = frame
        self.random_state = random_state

    def fit(self, X: Any, Y: Any = None, pairs: Any = None) -> Self:
        """Learn the map from the space of ``X`` to that of ``Y``.

        Args:
            X: ``[n, d_x]`` raw rows of the source.
            Y: ``[m, d_y]`` raw rows of the target, of other texts.
            pairs: rows ``[p, d_x]`` and ``[p, d_y]`` of known pairs, if there are any.
        """
        X = validate_data(self, X, dtype=_DTYPES)
        if Y is None:
            raise InputError("Aligner requires y to be passed, but the target y is None; pass rows of the target space")
        Y = check_array(Y, dtype=_DTYPES, input_name="Y")
        config = Config.preset(self.preset) if self.config is None else self.config
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31 - 1)
        key = jax.random.key(int(seed))
        best = align_restarts(key, X, Y, self.restarts, config, num_settled=self.settled, pairs=pairs).best
        self.map_ = jax.tree.map(np.asarray, best.map)
        self.verdict_, self.reason_ = Verdict(int(best.verdict)).name, Reason(int(best.reason)).name
        self.confidence_, self.estimated_top1_ = float(best.confidence), float(best.estimated_top1)
        self._n_features_out = Y.shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Map raw rows ``X [n, d_x]`` into the space of ``Y``: ``[n, d_y]``."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=_DTYPES)
        return from_map(self.map_).apply(X, frame=self.frame)

    def inverse_transform(self, Y: Any) -> np.ndarray:
        """Map raw rows ``Y [n, d_y]`` into the space of ``X``: ``[n, d_x]``."""
        check_is_fitted(self)
        return from_map(self.map_).apply(check_array(Y, dtype=_DTYPES, input_name="Y"), frame=self.frame, inverse=True)

    def score(self, X: Any, Y: Any) -> float:
        """Share of rows of ``X`` that find their true partner, row i of ``Y``, first among all rows of ``Y``."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=_DTYPES)
        return float(evaluate(self.map_, X, check_array(Y, dtype=_DTYPES, input_name="Y")).top1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.one_d_labels, tags.target_tags.two_d_labels = False, True
        tags.transformer_tags.preserves_dtype = ["float32", "float64"]
        return tags
