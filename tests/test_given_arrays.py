"""Every public function that takes rows or maps: the same arrays are refused by one sentence, and the same accepted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mv2v_jax
from mv2v_jax import Centering, InputError, LinearMap
from mv2v_jax import training as t
from mv2v_jax.ops.masked import squarable_rows, unit_rows
from mv2v_jax.portable.numpy_map import from_map

D = 4
ROWS = np.random.default_rng(0).normal(size=(60, D)).astype(np.float32)
KEY = jax.random.key(0)


def make_map(W=None, mean=None, scale=None):
    centering = Centering(
        mean=np.zeros(D, np.float32) if mean is None else mean, scale=np.float32(1) if scale is None else scale
    )
    return LinearMap(W=np.eye(D, dtype=np.float32) if W is None else W, source=centering, target=centering)


MAP = make_map()
MAPS = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), MAP)
# Shapes are enough where the arguments are refused, and compile nothing.
STATE = jax.eval_shape(lambda: t.online_init(MAP, ROWS))
CONFIG = mv2v_jax.Config.fast().replace(anchors={"num_clusters": 5})

# Each takes one argument that is rows.
TAKES_ROWS = {
    "align x": lambda x: mv2v_jax.align(KEY, x, ROWS, CONFIG),
    "align y": lambda y: mv2v_jax.align(KEY, ROWS, y, CONFIG),
    "align pairs": lambda x: mv2v_jax.align(KEY, ROWS, ROWS, CONFIG, pairs=(x, ROWS)),
    "align_restarts": lambda x: mv2v_jax.align_restarts(KEY, x, ROWS, 2, CONFIG),
    "align_restarts pairs": lambda y: mv2v_jax.align_restarts(KEY, ROWS, ROWS, 2, CONFIG, pairs=(ROWS, y)),
    "apply": lambda x: mv2v_jax.apply(MAP, x),
    "portable apply": lambda x: from_map(MAP).apply(x),
    "evaluate x": lambda x: mv2v_jax.evaluate(MAP, x, ROWS),
    "evaluate y": lambda y: mv2v_jax.evaluate(MAP, ROWS, y),
    "oracle x": lambda x: mv2v_jax.oracle(x, ROWS, ROWS),
    "oracle y_true": lambda y: mv2v_jax.oracle(ROWS, y, ROWS),
    "oracle y": lambda y: mv2v_jax.oracle(ROWS, ROWS, y),
    "measure_stability": lambda x: mv2v_jax.measure_stability(MAPS, x, ROWS),
    "online_init": lambda y: t.online_init(MAP, y),
    "online_update": lambda x: t.online_update(STATE, x, ROWS),
    "alignment_loss": lambda x: t.alignment_loss(MAP, x, ROWS),
    "refine_contrastive": lambda x: t.refine_contrastive(KEY, MAP, x, ROWS),
    "refine_contrastive pairs": lambda x: t.refine_contrastive(KEY, MAP, ROWS, ROWS, pairs=(x, ROWS)),
    "csls_loss": lambda x: t.csls_loss(x, ROWS),
    "cycle_loss": lambda x: t.cycle_loss(x, np.eye(D, dtype=np.float32)),
    "preservation_loss": lambda x: t.preservation_loss(x, ROWS),
    "soft_match": lambda x: t.soft_match(ROWS, x),
    "soft_procrustes": lambda x: t.soft_procrustes(x, ROWS, np.eye(D, dtype=np.float32)),
    "sinkhorn_divergence": lambda x: t.sinkhorn_divergence(x, ROWS),
    "contrastive_loss": lambda x: t.contrastive_loss(x, ROWS),
}
BAD_ROWS = {
    "integers": ROWS.astype(np.int32),
    "booleans": ROWS > 0,
    "complex": ROWS.astype(np.complex64),
    "long double": ROWS.astype(np.longdouble),
    "objects": ROWS.astype(object),
    "text": ROWS.astype(str),
    "lists of different lengths": [[1.0] * D, [1.0]],
    "a masked value": np.ma.masked_greater(ROWS, 2),
    "one row": ROWS[0],
    "three axes": ROWS[None],
    "none": None,
    "a number": 1.0,
    "a name": "x.npy",
    "another dimension": ROWS[:, :3],
    "no column": ROWS[:, :0],
}


OWN_DIMENSION = ("align x", "align y", "align_restarts", "oracle x", "preservation_loss")


# Maps take a single row, and a portable one what NumPy can compute.
ACCEPTED = {"apply": ("one row",), "portable apply": ("one row", "long double")}


@pytest.mark.parametrize("rows", BAD_ROWS)
@pytest.mark.parametrize("function", TAKES_ROWS)
def test_bad_rows_are_one_sentence(function, rows):
    if rows == "another dimension" and function in OWN_DIMENSION:
        pytest.skip("each space has its own dimension")
    if rows in ACCEPTED.get(function, ()):
        pytest.skip("accepted")
    with pytest.raises(InputError) as refused:
        TAKES_ROWS[function](BAD_ROWS[rows])
    assert len(str(refused.value).splitlines()) == 1


TAKES_MAPS = {
    "apply": lambda linear_map: mv2v_jax.apply(linear_map, ROWS),
    "invert": mv2v_jax.invert,
    "evaluate": lambda linear_map: mv2v_jax.evaluate(linear_map, ROWS, ROWS),
    "online_init": lambda linear_map: t.online_init(linear_map, ROWS),
    "alignment_loss": lambda linear_map: t.alignment_loss(linear_map, ROWS, ROWS),
    "refine_contrastive": lambda linear_map: t.refine_contrastive(KEY, linear_map, ROWS, ROWS),
    "synchronize": lambda linear_map: mv2v_jax.synchronize({("a", "b"): linear_map}),
    "save_map": lambda linear_map: mv2v_jax.save_map("/dev/null/map.safetensors", linear_map),
}
BAD_MAPS = {
    "integers": make_map(W=np.eye(D, dtype=np.int64)),
    "booleans": make_map(W=np.eye(D) > 0),
    "complex": make_map(W=np.eye(D, dtype=np.complex64)),
    "integer mean": make_map(mean=np.zeros(D, np.int32)),
    "another mean": make_map(mean=np.zeros(D + 1, np.float32)),
    "scalar mean": make_map(mean=np.float32(0)),
    "a list": make_map(W=[[1.0] * D] * D),
    "text": make_map(scale="1"),
    "several": MAPS,
    "one axis": make_map(W=np.ones(D, np.float32)),
    "a matrix": np.eye(D, dtype=np.float32),
    "none": None,
}


@pytest.mark.parametrize("linear_map", BAD_MAPS)
@pytest.mark.parametrize("function", TAKES_MAPS)
def test_bad_maps_are_one_sentence(function, linear_map):
    with pytest.raises(InputError) as refused:
        TAKES_MAPS[function](BAD_MAPS[linear_map])
    assert len(str(refused.value).splitlines()) == 1
    assert "cannot be written" not in str(refused.value)


ALIKE = {
    "lists": ROWS.tolist(),
    "big-endian": ROWS.astype(">f4"),
    "Fortran order": np.asfortranarray(ROWS),
    "no value masked": np.ma.masked_greater(ROWS, 1e9),
    "a view with strides": np.repeat(ROWS, 2, axis=1)[:, ::2],
    "read-only": np.frombuffer(ROWS.tobytes(), np.float32).reshape(ROWS.shape),
    "JAX": jnp.asarray(ROWS),
}


@pytest.mark.parametrize("name", ALIKE)
def test_the_same_rows_in_another_form_are_mapped_to_the_same(name):
    np.testing.assert_array_equal(mv2v_jax.apply(MAP, ALIKE[name]), mv2v_jax.apply(MAP, ROWS))


APPLY = {
    "JAX": mv2v_jax.apply,
    "NumPy": lambda linear_map, rows, frame="centred": from_map(linear_map).apply(rows, frame=frame),
}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("frame", ["centred", "target"])
@pytest.mark.parametrize("function", APPLY)
def test_a_row_that_is_not_finite_changes_no_other(bad, frame, function):
    rows = ROWS.copy()
    rows[7, 2] = bad
    found = np.asarray(APPLY[function](MAP, rows, frame=frame))
    assert np.isnan(found[7]).all()
    expected = np.asarray(APPLY[function](MAP, ROWS, frame=frame))
    np.testing.assert_array_equal(np.delete(found, 7, 0), np.delete(expected, 7, 0))


@pytest.mark.parametrize("factor", [1e-30, 1e-25, 1e-15, 1e15, 1e25, 1e37])
@pytest.mark.parametrize("function", APPLY)
def test_rows_of_any_length_are_mapped_to_their_direction(factor, function):
    """float64 on NumPy is the oracle; the square of such rows is 0 or infinite in float32."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0]
    rows = ROWS * np.float32(factor)
    expected = rows.astype(np.float64) @ turn
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    linear_map = make_map(W=turn.astype(np.float32))
    np.testing.assert_allclose(APPLY[function](linear_map, rows), expected, atol=1e-6)
    large = make_map(W=(turn * factor).astype(np.float32))
    np.testing.assert_allclose(APPLY[function](large, ROWS), APPLY[function](linear_map, ROWS), atol=1e-6)


def test_scaling_by_powers_of_two_moves_no_bit():
    """Rows whose square can be computed have the unit rows that they always had."""
    lengths = np.exp(np.random.default_rng(2).uniform(-20, 20, size=(60, 1))).astype(np.float32)
    rows = jnp.asarray(ROWS * lengths)
    np.testing.assert_array_equal(unit_rows(squarable_rows(rows)), unit_rows(rows))
    half = jnp.asarray(ROWS, jnp.bfloat16)
    np.testing.assert_array_equal(unit_rows(squarable_rows(half)), unit_rows(half))
