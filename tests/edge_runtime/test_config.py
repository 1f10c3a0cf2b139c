"""Flat keys in, frozen settings out: what is read is what was written, and what is wrong is named with its range."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import losses, optimizers
from edge_runtime.config import flatten, flatten_tree, from_flat, key, pick, section
from edge_runtime.errors import ConfigError
from edge_runtime.train.config import DataConfig, OptimizerConfig, RoundTask, TrainConfig


@dataclass(frozen=True, slots=True)
class Engine:
    power_w: float = key(5.0, above=0, high=100)
    cylinders: int = key(4, low=1, below=17)


@dataclass(frozen=True, slots=True)
class Tractor:
    fuels: tuple[str, ...] = key(("diesel",), choices=("diesel", "rape", "wood"))
    name: str = key("")
    turbo: bool = key(False)
    hitch: str = key("", choices=("", "front", "rear"))
    engine: Engine = section(Engine)


@dataclass(frozen=True, slots=True)
class Fence:
    length_m: float = 0.0


@dataclass(frozen=True, slots=True)
class Trailer:
    load_kg: int


def refusal(values: dict[str, object], cls: type = Tractor) -> str:
    with pytest.raises(ConfigError) as caught:
        from_flat(cls, values)
    return str(caught.value)


tractors = st.builds(
    Tractor,
    fuels=st.lists(st.sampled_from(["diesel", "rape", "wood"])).map(tuple),
    name=st.text(),
    turbo=st.booleans(),
    engine=st.builds(
        Engine, power_w=st.floats(0, 100, exclude_min=True), cylinders=st.integers(min_value=1, max_value=16)
    ),
)


@given(tractors)
def test_flatten_then_from_flat_gives_the_same_settings(tractor: Tractor) -> None:
    assert from_flat(Tractor, flatten(tractor)) == tractor


def test_flatten_writes_dotted_keys_and_joins_word_lists() -> None:
    assert flatten(Tractor(fuels=("rape", "wood"))) == {
        "fuels": "rape,wood",
        "name": "",
        "turbo": False,
        "hitch": "",
        "engine.power_w": 5.0,
        "engine.cylinders": 4,
    }


def test_round_task_survives_its_trip_as_flat_keys() -> None:
    task = RoundTask(round=7, data=DataConfig(name="digits", clients=3), train=TrainConfig(batch_size=5))
    assert from_flat(RoundTask, flatten(task)) == task


def test_flatten_tree_joins_tables_of_any_depth() -> None:
    assert flatten_tree({"a": 1, "b": {"c": 2, "d": {"e": [3]}}}) == {"a": 1, "b.c": 2, "b.d.e": [3]}


def test_no_keys_give_the_defaults() -> None:
    assert from_flat(Tractor, {}) == Tractor()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Engine().power_w = 1.0  # type: ignore[misc]


def test_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    text = refusal({"engine.cylinder": 4})
    assert "engine.cylinder = 4" in text
    assert "did you mean engine.cylinders?" in text


def test_unknown_key_that_resembles_nothing_is_refused_with_the_sections() -> None:
    text = refusal({"zzz": 1})
    assert "zzz" in text
    assert "did you mean" not in text
    assert "engine, fuels, hitch, name, turbo" in text


def test_a_missing_key_without_default_is_named_with_its_type() -> None:
    assert "load_kg is missing" in refusal({}, Trailer)
    assert "whole number" in refusal({}, Trailer)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("engine.cylinders", 0, "a whole number >= 1 and < 17"),
        ("engine.cylinders", 17, "a whole number >= 1 and < 17"),
        ("engine.cylinders", 4.0, "a whole number"),
        ("engine.cylinders", True, "a whole number"),
        ("engine.cylinders", "4", "a whole number"),
        ("engine.cylinders", None, "a whole number"),
        ("engine.power_w", 0.0, "a finite number > 0 and <= 100"),
        ("engine.power_w", 100.1, "a finite number > 0 and <= 100"),
        ("engine.power_w", math.nan, "a finite number"),
        ("engine.power_w", math.inf, "a finite number"),
        ("engine.power_w", -math.inf, "a finite number"),
        ("engine.power_w", True, "a finite number"),
        ("engine.power_w", "5.0", "a finite number"),
        ("turbo", 1, "true or false"),
        ("turbo", "true", "true or false"),
        ("name", 3, "text"),
        ("fuels", "coal", "one of diesel, rape, wood"),
        ("fuels", "diesel,coal", "one of diesel, rape, wood"),
        ("fuels", ["diesel", 1], "one of diesel, rape, wood"),
        ("fuels", 5, "a list of words"),
        ("hitch", "side", 'one of "", front, rear'),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_range(name: str, value: object, allowed: str) -> None:
    text = refusal({name: value})
    assert text.startswith(f"{name} = ")
    assert allowed in text
    assert "\n" not in text
    for word in value if isinstance(value, list) else [value]:
        assert str(word).split(",")[-1] in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_infinity_is_refused_even_where_no_bound_stands(value: float) -> None:
    assert refusal({"length_m": value}, Fence) == f"length_m = {value}: must be a finite number"


def test_a_whole_number_is_taken_for_a_float_setting() -> None:
    power = from_flat(Tractor, {"engine.power_w": 7}).engine.power_w
    assert power == 7.0
    assert type(power) is float


def test_a_whole_number_beyond_every_float_is_refused() -> None:
    assert "engine.power_w = " in refusal({"engine.power_w": 10**400})


def test_a_long_value_is_cut_short_in_the_error() -> None:
    assert len(refusal({"turbo": "x" * 10_000})) < 200


@pytest.mark.parametrize(
    "words", ["diesel,wood", " diesel , wood ", "diesel,wood,", ["diesel", "wood"], ("diesel", "wood")]
)
def test_a_word_list_is_read_from_text_or_a_list(words: object) -> None:
    assert from_flat(Tractor, {"fuels": words}).fuels == ("diesel", "wood")


def test_pick_leaves_foreign_keys_alone_but_checks_its_own() -> None:
    assert pick(Engine, {"cylinders": 6, "name": "x", "engine.cylinders": -1}) == Engine(cylinders=6)
    with pytest.raises(ConfigError, match=r"cylinders = -1"):
        pick(Engine, {"cylinders": -1, "name": "x"})


def test_an_optimizer_takes_the_settings_it_has() -> None:
    settings = OptimizerConfig(name="adam", lr=0.02, beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.1, momentum=0.7)
    assert settings.build() == optimizers.Adam(0.02, 0.8, 0.99, 1e-6, 0.1)
    sgd = OptimizerConfig(name="sgd", lr=0.2, momentum=0.7, nesterov=True, weight_decay=0.1)
    assert sgd.build() == optimizers.SGD(0.2, 0.7, nesterov=True, weight_decay=0.1)


def test_nesterov_without_momentum_is_refused_by_key() -> None:
    values = {"train.optimizer.nesterov": True, "train.optimizer.momentum": 0.0}
    assert "train.optimizer.nesterov" in refusal(values, RoundTask)


@pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS))
def test_every_optimizer_name_builds_its_optimizer(name: str) -> None:
    assert type(OptimizerConfig(name=name).build()) is optimizers.OPTIMIZERS[name]


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_every_loss_name_builds_its_loss(name: str) -> None:
    assert type(TrainConfig(loss=name).build_loss()) is losses.LOSSES[name]


def test_a_loss_takes_the_settings_it_has() -> None:
    assert TrainConfig(loss="cross_entropy", label_smoothing=0.1).build_loss() == losses.CrossEntropy(0.1)
    assert TrainConfig(loss="huber", huber_delta=2.0).build_loss() == losses.Huber(2.0)
