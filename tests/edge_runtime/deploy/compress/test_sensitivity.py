"""Mixed precision: what the table says, and what is chosen from it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import edge_runtime as er
from edge_runtime.deploy.compress.sensitivity import (
    Effect,
    Layer,
    Sensitivity,
    choose_bits,
    measure,
    sensitivity,
    to_text,
)
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.deploy.graph.quantise import quantise
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.errors import ConfigError
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.config import DataConfig
from simulations.datasets import DIGITS
from simulations.models import DigitsCNN

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")  # torch.export's own

ALL = (8, 4, 3, 2)


@pytest.fixture(scope="module")
def digits() -> Examples:
    return DIGITS.test_split(DataConfig(name="digits", clients=1, partition="iid"), 1)


@pytest.fixture(scope="module")
def model(digits: Examples) -> FloatModel:
    """A trained network."""
    train = DIGITS.client_split(DataConfig(name="digits", clients=1, partition="iid"), 1, 0)
    torch.manual_seed(0)
    trainer = er.Trainer(er.build(DigitsCNN(), train.x[:1], optimizer=er.Adam(lr=2e-3)))
    trainer.fit(Batches(train, 32, np.random.default_rng(0)), 10)
    return fold(captured_model(DigitsCNN(), train.x, trainer.state_dict()))


@pytest.fixture(scope="module")
def table(model: FloatModel, digits: Examples) -> Sensitivity:
    return sensitivity(model, digits.x, digits.y, ALL)


def test_an_effect_is_that_of_the_deployed_model_with_one_layer_rounded(
    table: Sensitivity, model: FloatModel, digits: Examples
) -> None:
    assert [layer.name for layer in table.layers] == ["conv.weight", "hidden.weight", "out.weight"]
    assert table.accuracy == np.mean(predict(model, digits.x).argmax(1) == digits.y)
    quantised = quantise(model, {}, weight_bits=2, activations=False)
    only = {name: one for name, one in quantised.quants.items() if name == "hidden.weight"}
    logits = predict_rounded(type(quantised)(model, only), digits.x)
    effect = table.layers[1].effects[2]
    assert effect.accuracy == np.mean(logits.argmax(1) == digits.y)
    exact = predict(model, digits.x)
    assert effect.error == pytest.approx(np.mean((logits - exact) ** 2) / np.mean(exact**2), rel=1e-4)


def test_fewer_bits_are_further_off(table: Sensitivity) -> None:
    for layer in table.layers:
        errors = [layer.effects[bits].error for bits in ALL]
        assert errors == sorted(errors)
        assert errors[0] < 1e-3 < errors[-1]


def test_a_choice_meets_its_target_and_what_it_gives_is_measured(
    table: Sensitivity, model: FloatModel, digits: Examples
) -> None:
    whole = table.nbytes({})
    chosen = choose_bits(table, target_bytes=whole * 2 // 3)
    assert table.nbytes(chosen) <= whole * 2 // 3
    assert set(chosen.values()) == {4, 8}
    effect = measure(model, digits.x, digits.y, chosen)
    assert effect.accuracy >= table.accuracy - table.drop(chosen) / 100 - 0.02
    logits = predict_rounded(quantise(model, {}, weight_bits=chosen, activations=False), digits.x)
    assert effect.accuracy == np.mean(logits.argmax(1) == digits.y)
    expected = sum(layer.effects[chosen[layer.name]].error for layer in table.layers)
    assert effect.error == pytest.approx(expected, rel=0.5)  # errors are near to independent


def test_a_bound_on_accuracy_holds_where_it_is_measured(
    table: Sensitivity, model: FloatModel, digits: Examples
) -> None:
    chosen = choose_bits(table, max_drop=1.0, widths=ALL)
    assert min(chosen.values()) < 8
    assert table.drop(chosen) <= 1.0
    assert measure(model, digits.x, digits.y, chosen).accuracy >= table.accuracy - 0.03


def test_training_with_rounding_takes_the_chosen_widths(
    table: Sensitivity, model: FloatModel, digits: Examples
) -> None:
    """The names are the module's own."""
    chosen = choose_bits(table, target_bytes=table.nbytes({}) * 2 // 5, widths=ALL)
    assert {2, 3} & set(chosen.values())
    train = DIGITS.client_split(DataConfig(name="digits", clients=1, partition="iid"), 1, 0)
    trainer = er.Trainer(er.build(DigitsCNN(), train.x[:1], optimizer=er.Adam(lr=2e-3), qat_bits=chosen))
    trainer.load_state_dict(dict(model.weights))
    trainer.fit(Batches(train, 32, np.random.default_rng(0)), 3)
    after = fold(captured_model(DigitsCNN(), train.x, trainer.state_dict()))
    before = measure(model, digits.x, digits.y, chosen).accuracy
    assert measure(after, digits.x, digits.y, chosen).accuracy > before - 0.005


def test_two_and_three_bits_are_for_those_who_ask(table: Sensitivity) -> None:
    least = choose_bits(table, max_drop=100.0)
    assert set(least.values()) == {4}
    assert set(choose_bits(table, max_drop=100.0, widths=ALL).values()) == {2}
    with pytest.raises(ConfigError, match=rf"widths 8, 4 come down to {table.nbytes(least)} bytes; what would help"):
        choose_bits(table, target_bytes=table.nbytes(least) - 1)
    assert choose_bits(table, target_bytes=table.nbytes(least) - 1, widths=ALL)


def test_the_text_shows_every_figure_and_marks_the_choice(table: Sensitivity) -> None:
    chosen = choose_bits(table, target_bytes=table.nbytes({}) * 2 // 3)
    text = to_text(table, chosen)
    for layer in table.layers:
        line = next(line for line in text.splitlines() if line.startswith(layer.name))
        assert line.count("%") == len(ALL)
        marked = line.split("*")[0].count("%")
        assert ALL[marked - 1] == chosen[layer.name]
    assert f"{table.nbytes(chosen)} bytes" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "choose_bits needs target_bytes, max_drop, or both"),
        ({"max_drop": 1.0, "widths": (8, 5)}, "widths: 5 bits were not measured"),
    ],
)
def test_what_cannot_be_chosen(table: Sensitivity, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_bits(table, **arguments)


def test_widths_that_are_none_are_refused(model: FloatModel, digits: Examples) -> None:
    with pytest.raises(ConfigError, match="must be numbers from 2 to 8"):
        sensitivity(model, digits.x, digits.y, (8, 1))


def test_token_models_are_measured_too() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 12))
    x = np.random.default_rng(0).integers(0, 12, (5, 6))
    model = fold(captured_model(module, x))
    table = sensitivity(model, x, predict(model, x).argmax(-1))
    assert [layer.name for layer in table.layers] == ["0.weight", "1.weight"]
    assert table.accuracy == 1.0
    assert table.layers[1].effects[8].accuracy > 0.9


@st.composite
def tables(draw: st.DrawFn) -> Sensitivity:
    share = st.floats(0, 1)
    layers = []
    for number in range(draw(st.integers(1, 6))):
        size = draw(st.integers(1, 5000))
        effects = {bits: Effect(draw(share), draw(share)) for bits in ALL}
        layers.append(Layer(f"w{number}", size, draw(st.integers(1, size)), effects))
    return Sensitivity(draw(share), tuple(layers))


@given(tables(), st.lists(st.integers(0, 40_000), min_size=2, max_size=4))
def test_smaller_targets_narrow_the_same_layers_and_more(table: Sensitivity, targets: list[int]) -> None:
    least = table.nbytes(choose_bits(table, max_drop=1e9, widths=ALL))
    choices = [
        choose_bits(table, target_bytes=max(least, target), widths=ALL) for target in sorted(targets, reverse=True)
    ]
    for target, chosen in zip(sorted(targets, reverse=True), choices, strict=True):
        assert table.nbytes(chosen) <= max(least, target)
    for wide, narrow in itertools.pairwise(choices):
        assert all(narrow[name] <= wide[name] for name in wide)


@given(tables(), st.floats(0, 300))
def test_no_choice_is_expected_to_cost_more_than_was_allowed(table: Sensitivity, max_drop: float) -> None:
    chosen = choose_bits(table, max_drop=max_drop)
    wide = dict.fromkeys(chosen, 8)
    assert table.drop(chosen) <= max(max_drop, table.drop(wide))
    for name, bits in chosen.items():  # and nothing more would do
        for narrower in (one for one in (8, 4) if one < bits):
            assert table.drop({**chosen, name: narrower}) > max_drop
