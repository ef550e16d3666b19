"""Ranks against SciPy, what perfect and useless maps score, and who may look at true pairs."""

import ast
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import semi_orthogonal, unit
from scipy.stats import rankdata

import mv2v_jax
from mv2v_jax.evaluation.metrics import evaluate, oracle, pair_ranks
from mv2v_jax.linear_map import LinearMap, apply

NUM_ROWS, D_X, D_Y = 40, 6, 4


def make_map(W, mean_x=None, mean_y=None):
    W = jnp.asarray(W, jnp.float32)
    mean_x = jnp.zeros(W.shape[0]) if mean_x is None else jnp.asarray(mean_x, jnp.float32)
    mean_y = jnp.zeros(W.shape[1]) if mean_y is None else jnp.asarray(mean_y, jnp.float32)
    return LinearMap(W=W, mean_x=mean_x, mean_y=mean_y, scale_x=jnp.ones(()), scale_y=jnp.ones(()))


def expected_ranks(x, y):
    """Mid-ranks of the diagonal, from 1 for the most similar; rounding first, so that equal rows tie."""
    similarity = np.round(np.float64(x) @ np.float64(y).T, 5)
    return np.diagonal(rankdata(-similarity, method="average", axis=1))


@pytest.mark.parametrize("duplicates", [0, 5, 20])
def test_ranks_equal_scipy_mid_ranks(rng, duplicates):
    x, y = (unit(rng.normal(size=(NUM_ROWS, D_Y))).astype(np.float32) for _ in range(2))
    y[:duplicates] = y[duplicates : 2 * duplicates]
    expected = expected_ranks(x, y)
    assert (duplicates == 0) == (expected == expected.round()).all()
    np.testing.assert_allclose(pair_ranks(jnp.asarray(x), jnp.asarray(y)), expected)


def test_every_score_against_numpy(rng):
    x, y = rng.normal(size=(NUM_ROWS, D_X)).astype(np.float32), rng.normal(size=(NUM_ROWS, D_Y)).astype(np.float32)
    W = semi_orthogonal(rng, D_X, D_Y)
    y = (0.4 * y + x @ W).astype(np.float32)  # Between useless and perfect, so that every score says something.
    found = evaluate(make_map(W, x.mean(0), y.mean(0)), jnp.asarray(x), jnp.asarray(y))
    mapped, target = unit(unit(x - x.mean(0)) @ W), unit(y - y.mean(0))
    ranks = expected_ranks(mapped, target)
    assert 0.2 < (ranks == 1).mean() < 1
    expected = {
        "top1": (ranks <= 1).mean(),
        "top5": (ranks <= 5).mean(),
        "top10": (ranks <= 10).mean(),
        "mean_rank": ranks.mean(),
        "mrr": (1 / ranks).mean(),
        "foscttm": ((ranks - 1) / (NUM_ROWS - 1)).mean(),
        "cosine": (mapped * target).sum(1).mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-5, err_msg=name)


def test_a_perfect_map(rng):
    x = rng.normal(size=(NUM_ROWS, D_X)).astype(np.float32)
    turn = semi_orthogonal(rng, D_X, D_X).astype(np.float32)
    found = evaluate(make_map(turn), jnp.asarray(x), jnp.asarray(x @ turn))
    assert float(found.top1) == float(found.mean_rank) == float(found.mrr) == 1
    assert float(found.foscttm) == 0
    np.testing.assert_allclose(found.cosine, 1, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_map_to_one_point_is_at_chance(rng, scale):
    x, y = rng.normal(size=(NUM_ROWS, D_X)), rng.normal(size=(1, D_Y)).repeat(NUM_ROWS, 0)
    found = evaluate(make_map(scale * semi_orthogonal(rng, D_X, D_Y)), jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(found.mean_rank, (NUM_ROWS + 1) / 2)
    np.testing.assert_allclose(found.foscttm, 0.5)
    assert float(found.top1) == float(found.top10) == 0


def test_one_pair_scores_perfect():
    found = evaluate(make_map(np.eye(2)), jnp.ones((1, 2)), jnp.ones((1, 2)))
    assert (float(found.top1), float(found.foscttm)) == (1, 0)


def test_the_oracle_recovers_a_rotation_and_a_shift(rng):
    x = rng.normal(size=(60, D_X)).astype(np.float32)
    turn = semi_orthogonal(rng, D_X, D_X).astype(np.float32)
    y = (2 * (x - x.mean(0)) @ turn + 5).astype(np.float32)
    best = oracle(jnp.asarray(x), jnp.asarray(y), jnp.asarray(y))
    np.testing.assert_allclose(best.W, turn, atol=1e-4)
    np.testing.assert_allclose(apply(best, jnp.asarray(x)), unit(y - y.mean(0)), atol=1e-4)


PACKAGE = Path(mv2v_jax.__file__).parent
# They report to people; nothing else may know how good a map really is.
MAY_SEE_PAIRS = {"metrics", "cli", "__main__", "demo_data"}


def imported_modules(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere in it, the package itself as ``__init__``."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # All modules lie side by side, so that a relative import is one of the package.
            base = ".".join(filter(None, ["mv2v_jax" if node.level else "", node.module]))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    ours = [name.split(".") for name in names if name.split(".")[0] == "mv2v_jax"]
    # Importing a module runs the package first.
    found = {"__init__"} if ours else set()
    return found | {parts[1] for parts in ours if len(parts) > 1 and (PACKAGE / f"{parts[1]}.py").exists()}


def reachable(module: str, imports: dict[str, set[str]]) -> set[str]:
    """Every module that importing one brings along, through any number of others."""
    seen, waiting = set(), [module]
    while waiting:
        for name in imports[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def test_nothing_that_fits_selects_or_judges_imports_the_metrics():
    imports = {path.stem: imported_modules(path) for path in PACKAGE.glob("*.py")}
    assert {"evidence", "verdict", "restarts", "pipeline", "anneal", "refine", "anchors", "__init__"} <= set(imports)
    offenders = [name for name in set(imports) - MAY_SEE_PAIRS if "metrics" in reachable(name, imports)]
    assert not offenders
    # The walk finds an import, and one through another module.
    assert "metrics" in imports["cli"]
    assert "metrics" not in imports["__main__"]
    assert "metrics" in reachable("__main__", imports)
    assert "anchors" in reachable("restarts", imports) - imports["restarts"]


@pytest.mark.parametrize(
    "line",
    [
        "import mv2v_jax.evaluation.metrics",
        "from mv2v_jax import metrics",
        "from mv2v_jax.metrics import evaluate",
        "from . import metrics",
        "from .metrics import evaluate as e",
        "def f():\n    from mv2v_jax import metrics as m",
    ],
)
def test_every_way_to_import_is_seen(tmp_path, line):
    (tmp_path / "module.py").write_text(line)
    assert imported_modules(tmp_path / "module.py") == {"__init__", "metrics"}
