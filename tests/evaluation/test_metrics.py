"""Ranks against SciPy, scores of perfect and useless maps, and which modules may import the metrics."""

import ast
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_map, semi_orthogonal, unit
from scipy.stats import rankdata

import mv2v_jax
from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.metrics import evaluate, oracle, pair_ranks
from mv2v_jax.linear_map import apply
from mv2v_jax.training.contrastive import Contrastive

NUM_ROWS, D_X, D_Y = 40, 6, 4


def expected_ranks(x, y):
    """Mid-ranks of the diagonal, 1 for the most similar row; similarities are rounded so that equal rows tie."""
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
    y = (0.4 * y + x @ W).astype(np.float32)  # Between useless and perfect, so that no score is trivial.
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


@pytest.mark.parametrize("transform", [lambda fun: fun, jax.jit], ids=["eager", "jit"])
def test_bad_input_is_refused_in_one_sentence_under_jit_as_well(rng, transform):
    x, y = (jnp.asarray(rng.normal(size=(9, d)), jnp.float32) for d in (D_X, D_Y))
    linear_map = make_map(semi_orthogonal(rng, D_X, D_Y))
    several = jax.tree.map(lambda leaf: leaf[None], linear_map)
    for fun, arguments, message in [
        (evaluate, (linear_map, y, x), r"x must have 6 columns for this map, found 4; were x and y swapped\?"),
        (evaluate, (linear_map, x, y[:3]), "y must have a row for each of the 9 of x, found 3"),
        (evaluate, (linear_map, x[0], y), r"x must be two-dimensional, one embedding per row, found shape \[6\]"),
        (evaluate, (several, x, y), r"linear_map must hold W \[d_x, d_y\], one map, found shape \[1, 6, 4\]"),
        (evaluate, (linear_map.W, x, y), "linear_map must be a LinearMap, found"),
        (oracle, (y, x, y), r"y_true must have 4 columns like y, found 6; were x and y swapped\?"),
        (oracle, (x, y[:3], y), "y_true must have a row for each of the 9 of x, found 3"),
        (oracle, (x[:0], y[:0], y), "x must have at least 1 row, found 0"),
    ]:
        with pytest.raises(InputError, match=message):
            transform(fun)(*arguments)


def test_a_result_instead_of_its_map_is_named(rng):
    start = make_map(np.eye(D_X, D_Y))
    result = Contrastive(map=start, loss=jnp.zeros(1), moved=jnp.zeros(1))
    with pytest.raises(InputError, match="linear_map must be a LinearMap, found Contrastive; pass its map"):
        evaluate(result, jnp.ones((2, D_X)), jnp.ones((2, D_Y)))


PACKAGE = Path(mv2v_jax.__file__).parent
METRICS = "mv2v_jax.evaluation.metrics"
# The package passes every public name on, the command line and its pages report to users, and judges score what a user
# asks them to. No other module may see true pairs.
REPORTS = ("mv2v_jax.cli.", "mv2v_jax.report.")
JUDGES = ("mv2v_jax.evaluation.search", "mv2v_jax.evaluation.index_search", "mv2v_jax.estimator")
MAY_SEE_PAIRS = {"mv2v_jax", METRICS, *JUDGES}


def module_name(path: Path) -> str:
    """The dotted name of a file of the package; a folder's ``__init__.py`` is the folder itself."""
    parts = ["mv2v_jax", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imported_modules(path: Path, package: str) -> set[str]:
    """Modules of this package that a file of ``package`` imports by name, anywhere in it.

    The packages above them run as well, but they are not followed: `mv2v_jax` itself imports everything.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names & set(MODULES)


def reachable(module: str, imports: dict[str, set[str]]) -> set[str]:
    """Every module that importing one brings along, through any number of others."""
    seen, waiting = set(), [module]
    while waiting:
        for name in imports[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def test_nothing_that_fits_selects_or_judges_imports_the_metrics():
    imports = {
        name: imported_modules(path, name if path.stem == "__init__" else name.rpartition(".")[0])
        for name, path in MODULES.items()
    }
    stages = ("anchors", "match_relative", "refine_annealed", "refine_published", "score", "fit", "api")
    assert {"mv2v_jax", *(f"mv2v_jax.alignment.{stage}" for stage in stages)} <= set(imports)
    offenders = [
        name
        for name in set(imports) - MAY_SEE_PAIRS
        if not name.startswith(REPORTS) and METRICS in reachable(name, imports)
    ]
    assert not offenders
    # The walk finds an import, and one through another module.
    assert METRICS in imports["mv2v_jax.cli.evaluate"]
    api = "mv2v_jax.alignment.api"
    assert "mv2v_jax.alignment.anchors" in reachable(api, imports) - imports[api]


@pytest.mark.parametrize(
    "line",
    [
        "import mv2v_jax.evaluation.metrics",
        "from mv2v_jax.evaluation import metrics",
        "from mv2v_jax.evaluation.metrics import evaluate",
        "from . import metrics",
        "from .metrics import evaluate as e",
        "from ..evaluation import metrics",
        "def f():\n    from mv2v_jax.evaluation import metrics as m",
    ],
)
def test_every_way_to_import_is_seen(tmp_path, line):
    (tmp_path / "module.py").write_text(line)
    found = imported_modules(tmp_path / "module.py", "mv2v_jax.evaluation")
    assert found - {"mv2v_jax.evaluation"} == {METRICS}


def test_a_name_of_the_whole_package_counts_as_all_of_it(tmp_path):
    (tmp_path / "module.py").write_text("from mv2v_jax import evaluate")
    assert imported_modules(tmp_path / "module.py", "mv2v_jax.runs") == {"mv2v_jax"}
