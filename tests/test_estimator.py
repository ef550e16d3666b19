"""`Aligner` keeps the conventions of scikit-learn, by its own checks, and gives what the functions give."""

import pickle
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import planted_clouds, small_config
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator

from mv2v_jax import Centering, LinearMap, align_restarts, apply, evaluate, invert
from mv2v_jax import estimator as module
from mv2v_jax.estimator import Aligner

CONFIG = small_config(published_match_steps=0, published_cluster_steps=0, settling_steps=1, settling_whole_steps=0)


class Labelled(Aligner):
    """Aligns X with a turned copy of itself, because scikit-learn's checks pass labels as the second argument."""

    def fit(self, X, y=None):
        if y is None:
            return super().fit(X, None)
        super().fit(X, np.asarray(self._rows(X))[:, ::-1])
        return self

    def score(self, X, y):
        return super().score(X, np.asarray(self._rows(X))[:, ::-1])

    def _rows(self, X):
        return module.check_array(X, dtype=[np.float32, np.float64])


@pytest.fixture
def no_search(monkeypatch):
    """The identity instead of a fit, because the checks fit some fifty times, each in a shape of its own."""

    def fake(key, x, y, restarts, config, **options):
        source, target = (Centering(mean=rows.mean(axis=0), scale=np.ones(())) for rows in (x, y))
        linear_map = LinearMap(W=np.eye(x.shape[1], y.shape[1]), source=source, target=target)
        return SimpleNamespace(
            best=SimpleNamespace(map=linear_map, verdict=1, reason=1, confidence=0.5, estimated_top1=0.5)
        )

    monkeypatch.setattr(module, "align_restarts", fake)


CHECKS = list(estimator_checks_generator(Labelled()))


@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=[check.func.__name__ for _, check in CHECKS])
@pytest.mark.filterwarnings("ignore")
def test_checks_of_scikit_learn(no_search, estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def fitted():
    clouds = planted_clouds(12, 10, num_x=300, num_y=280, groups=8)
    return clouds, Aligner(config=CONFIG, frame="target", random_state=3).fit(clouds.x, clouds.y)


@pytest.mark.slow
def test_fits_what_align_restarts_fits(fitted):
    clouds, aligner = fitted
    best = align_restarts(jax.random.key(3), clouds.x, clouds.y, 2, CONFIG).best
    np.testing.assert_array_equal(aligner.map_.W, best.map.W)
    assert aligner.verdict_ in ("aligned", "uncertain", "not_aligned")
    assert aligner.confidence_ == float(best.confidence)
    mapped = aligner.transform(clouds.x_eval)
    np.testing.assert_allclose(mapped, apply(best.map, clouds.x_eval, frame="target"), rtol=1e-4, atol=1e-4)
    back = aligner.inverse_transform(clouds.y_eval)
    expected = apply(invert(best.map), clouds.y_eval, frame="target")
    np.testing.assert_allclose(back, expected, rtol=1e-4, atol=1e-4)
    assert aligner.score(clouds.x_eval, clouds.y_eval) == float(evaluate(best.map, clouds.x_eval, clouds.y_eval).top1)


def test_clones_pickles_and_goes_into_pipelines(fitted):
    clouds, aligner = fitted
    copy = pickle.loads(pickle.dumps(aligner))
    np.testing.assert_array_equal(copy.transform(clouds.x_eval), aligner.transform(clouds.x_eval))
    assert clone(aligner).get_params() == aligner.get_params()
    assert not hasattr(clone(aligner), "map_")
    assert aligner.get_feature_names_out().tolist() == [f"aligner{i}" for i in range(10)]
    pipeline = make_pipeline(FunctionTransformer(), aligner)
    np.testing.assert_array_equal(pipeline[-1:].transform(clouds.x_eval), aligner.transform(clouds.x_eval))


def test_rows_come_as_a_data_frame_where_asked(fitted):
    pytest.importorskip("pandas")
    clouds, aligner = fitted
    framed = pickle.loads(pickle.dumps(aligner)).set_output(transform="pandas").transform(clouds.x_eval)
    assert framed.columns.tolist() == aligner.get_feature_names_out().tolist()
    np.testing.assert_array_equal(framed.to_numpy(), aligner.transform(clouds.x_eval))


def test_without_scikit_learn_the_import_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "mv2v_jax.estimator")
    with pytest.raises(ImportError, match=r'pip install "mv2v_jax\[sklearn\]"'):
        import mv2v_jax.estimator  # noqa: F401
