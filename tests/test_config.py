"""Configs: published presets, bounds, help texts, nested changes, and which fields are traced."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config, with_settings

from mv2v_jax import Config, InputError, SyncConfig, align
from mv2v_jax.config import PRESETS, check_config
from mv2v_jax.settings import as_config, check_settings, iterate_fields

PUBLISHED = {
    "anchors.num_clusters": 20,
    "anchors.num_sets": 30,
    "anchors.kept_sets": 30,
    "anchors.num_starts": 30,
    "anchors.rows": 10_000,
    "relative.num_neighbors": 50,
    "published.num_neighbors": 50,
    "published.num_clusters": 500,
    "published.smoothing": 0.5,
    "published.project": False,
    "annealing.steps": 0,
    "settling.steps": 0,
    "settling.whole_steps": 0,
    "polishing.steps": 0,
    "search_dims": 0,
    "whitening.power": 0.0,
}


def values(config):
    """Every setting by its dotted name."""
    return {".".join(path): value for path, _, value in iterate_fields(config)}


FIELDS = {".".join(path): field for path, field, _ in iterate_fields(Config())}


def with_value(name, value, config=None):
    """A config with the setting of a dotted name changed, its bounds unchecked."""
    stage, _, field = name.rpartition(".")
    return (config or Config()).replace(**({stage: {field: value}} if stage else {field: value}))


# ------------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(("preset", "steps", "rows"), [("notebook", 100, 1_000), ("paper", 75, 10_000)])
def test_published_values(preset, steps, rows):
    found = values(Config.preset(preset))
    expected = {**PUBLISHED, "published.match_steps": steps, "published.match_rows": rows}
    assert {name: found[name] for name in expected} == expected


def test_fast_does_less_of_everything_than_the_default():
    fast, default = values(Config.fast()), values(Config())
    assert 0 < fast["settling.whole_steps"] < default["settling.whole_steps"]
    assert 0 < fast["settling.whole_rows"] < default["settling.whole_rows"]
    assert [name for name in fast if fast[name] > default[name]] == []


def test_every_preset_is_listed_and_valid():
    assert PRESETS == ("default", "fast", "notebook", "paper")
    assert Config.preset("default") == Config()
    for name in PRESETS[1:]:
        assert Config.preset(name) == getattr(Config, name)()
    for name in PRESETS:
        check_config(Config.preset(name))
    assert len({str(Config.preset(name)) for name in PRESETS}) == len(PRESETS)
    listed = {name for name, value in vars(Config).items() if isinstance(value, classmethod)} - {"preset"}
    assert listed == set(PRESETS) - {"default"}


def test_an_unknown_preset_is_named():
    with pytest.raises(InputError, match=r"^preset must be one of default, fast, notebook, paper, found 'quick'$"):
        Config.preset("quick")


# ------------------------------------------------------------------------------------------------------------- changes


def test_replace_changes_nested_settings_and_nothing_else():
    config = Config.fast()
    changed = config.replace(max_rows=10_000, anchors={"num_clusters": 7, "rows": 11}, whitening={"power": 0.1})
    expected = {"max_rows": 10_000, "anchors.num_clusters": 7, "anchors.rows": 11, "whitening.power": 0.1}
    assert values(changed) == {**values(config), **expected}
    assert config == Config.fast()


def test_replace_takes_a_whole_stage():
    stage = dataclasses.replace(Config().anchors, num_sets=3)
    assert Config().replace(anchors=stage).anchors is stage


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_row": 3}, r"^Config has no field max_row; did you mean max_rows[?]$"),
        ({"anchors": {"num_cluster": 3}}, r"^AnchorConfig has no field num_cluster; did you mean num_clusters[?]$"),
        ({"whitening": {"zzz": 3}}, r"^WhiteningConfig has no field zzz; its fields are power, reliability_power$"),
    ],
)
def test_an_unknown_setting_is_named_with_what_there_is(changes, message):
    with pytest.raises(InputError, match=message):
        Config().replace(**changes)


def test_other_configs_can_be_changed_in_the_same_way():
    assert SyncConfig().replace(num_rounds=3).num_rounds == 3
    with pytest.raises(InputError, match=r"^SyncConfig has no field num_round; did you mean num_rounds[?]$"):
        SyncConfig().replace(num_round=3)


# -------------------------------------------------------------------------------------------------------------- checks


def wrong_values(field):
    """Values just outside of a field's bounds, and of the wrong type."""
    if field.type is bool:
        return [0, 1, "true", None]
    low, high = field.metadata["low"], field.metadata["high"]
    if field.type is int:
        return [low - 1, high + 1, float(low), True, "3", None]
    above = [] if high == np.inf else [np.nextafter(high, np.inf)]
    return [np.nextafter(low, -np.inf), *above, np.nan, "0.5", None]


def valid_values(field):
    if field.type is bool:
        return [False, True]
    low, high = field.metadata["low"], field.metadata["high"]
    if field.type is int:
        return [low, high]
    return [low, int(low), np.float32(low), jnp.float32(low), *([] if high == np.inf else [high])]


@pytest.mark.parametrize("name", FIELDS)
def test_the_bounds_of_every_setting_are_enforced(name):
    field = FIELDS[name]
    for value in valid_values(field):
        check_settings(with_value(name, value), Config)
    for value in wrong_values(field):
        with pytest.raises(InputError, match=f"^{name} must be .*, found ") as error:
            check_settings(with_value(name, value), Config)
        assert repr(value) in str(error.value)


@pytest.mark.parametrize("name", ["max_rows", "anchors.rows"])
def test_as_many_rows_as_clusters_are_needed(name):
    config = with_value("anchors.num_clusters", 7, with_value(name, 7))
    check_config(config)
    with pytest.raises(InputError, match=rf"^{name} must be at least anchors.num_clusters \(7\), found 6$"):
        check_config(with_value(name, 6, config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("fast", r"^config must be a Config, found 'fast'; use Config.fast\(\)$"),
        ("paper", r"^config must be a Config, found 'paper'; use Config.paper\(\)$"),
        ("quick", r"^config must be a Config, found 'quick'$"),
        ({"max_rows": 3}, r"^config must be a Config, found {'max_rows': 3}$"),
        (SyncConfig(), r"^config must be a Config, found SyncConfig\("),
    ],
)
def test_something_else_than_a_config_is_named(config, message):
    with pytest.raises(InputError, match=message):
        check_config(config)
    rows = np.ones((40, 3), np.float32)
    with pytest.raises(InputError, match=message):
        align(jax.random.key(0), rows, rows, config)


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_has_a_help_text(name):
    text = FIELDS[name].metadata["help"]
    assert text[0].isupper()
    assert text.endswith(".")


def test_every_stage_has_a_help_text():
    stages = [field for field in dataclasses.fields(Config) if field.name not in FIELDS]
    assert len(stages) == 8
    assert all(stage.metadata["help"].endswith(".") for stage in stages)


# -------------------------------------------------------------------------------------------------------------- pytree


def test_floats_are_traced_and_the_rest_is_static():
    floats = [value for _, field, value in iterate_fields(Config()) if field.type is float]
    assert jax.tree.leaves(Config()) == floats
    assert len(floats) == 12
    structure = jax.tree.structure(Config())
    assert hash(structure) == hash(jax.tree.structure(with_value("published.smoothing", 0.1)))
    assert structure == jax.tree.structure(with_value("published.smoothing", 0.1))
    assert structure != jax.tree.structure(with_value("anchors.num_clusters", 7))


def test_iterated_fields_are_all_fields_in_their_order():
    config = small_config()
    found = list(iterate_fields(config))
    assert [path for path, _, _ in found][:5] == [
        ("max_rows",),
        ("search_dims",),
        ("held_out_rows",),
        ("pair_weight",),
        ("anchors", "num_sets"),
    ]
    stages = [value for value in vars(config).values() if dataclasses.is_dataclass(value)]
    assert len(stages) == 8
    assert len(found) == sum(len(dataclasses.fields(part)) for part in (config, *stages)) - len(stages)
    for path, field, value in found:
        owner = config if len(path) == 1 else getattr(config, path[0])
        assert field.name == path[-1]
        assert value == getattr(owner, field.name)


def test_settings_are_named_by_stage_and_field():
    changed = with_settings(Config(), max_rows=9, anchors_num_sets=3, whitening_power=0.3)
    assert (changed.max_rows, changed.anchors.num_sets, changed.whitening.power) == (9, 3, 0.3)
    with pytest.raises(InputError, match="has no field"):
        small_config(anchor_num_sets=3)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().max_rows = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().anchors.num_clusters = 3


SCALARS = {
    "a whole number": 0,
    "float32": np.float32(0),
    "float64": np.float64(0),
    "int64": np.int64(0),
    "array": np.zeros(()),
    "JAX array": jnp.zeros(()),
}


@pytest.mark.parametrize("name", SCALARS)
def test_sweeping_floats_of_any_kind_compiles_nothing(name):
    """They become Python floats, which have one type once traced."""
    counted = []

    @jax.jit
    def power(config):
        counted.append(config)
        return config.whitening.power

    power(as_config(None, Config))
    power(as_config(Config().replace(whitening={"power": SCALARS[name]}), Config))
    assert len(counted) == 1


@pytest.mark.parametrize(
    "value", ["no", np.zeros(2), np.array([0.1]), jnp.zeros(2), True, np.True_, 1j, np.complex64(1), "0.1", [0.1], None]
)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(InputError, match=r"whitening\.power must be a number from 0\.0 to 0\.5, found"):
        as_config(Config().replace(whitening={"power": value}), Config)


@pytest.mark.parametrize(("path", "field"), [(path, field) for path, field, _ in iterate_fields(Config())])
@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -float("inf"), 2**63, 10**400, -(10**400)],
    ids=lambda value: f"{str(value)[:5]}",
)
def test_numbers_out_of_any_range_are_refused(path, field, value):
    if field.type is bool:
        pytest.skip("a switch")
    if field.type is float and value == 2**63 and field.metadata["high"] > value:
        pytest.skip("in range")
    changes = {path[-1]: value}
    with pytest.raises(InputError, match=re.escape(".".join(path))):
        as_config(Config().replace(**(changes if len(path) == 1 else {path[0]: changes})), Config)


def test_starts_that_no_memory_holds_are_refused():
    with pytest.raises(InputError, match="must be at most 268,435,456, found 360,000,000; use fewer"):
        check_config(Config().replace(anchors={"num_starts": 4_000, "num_clusters": 300}))
