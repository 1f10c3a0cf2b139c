"""What the server knows of what clients keep, and what it refuses to promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError
from edge_runtime.updates.versions import Parcel
from server.config import ServerConfig
from server.keeping import Control, Keeping
from server.link import Question
from server.model import GlobalModel


def test_the_mean_is_over_all_clients_ever_seen() -> None:
    control = Control(2)
    control.meet([1, 2, 3])
    assert control.move(1, ["1", "2"], np.array([3.0, -6.0]))
    np.testing.assert_allclose(control.value, [2, -4])
    control.meet([4])
    np.testing.assert_allclose(control.value, [2, -4])  # as long as the model stays
    assert control.move(2, ["4"], np.zeros(2))
    np.testing.assert_allclose(control.value, [1.5, -3])
    assert [control.counted(node) for node in (1, 2, 3, 4)] == [1, 1, 0, 2]


def test_a_move_to_infinity_counts_for_nobody() -> None:
    control = Control(1)
    assert control.move(1, ["1"], np.array([3e38]))
    assert not control.move(2, ["1"], np.array([3e38]))
    assert control.counted(1) == 1
    assert np.isfinite(control.value).all()


def test_nodes_are_sent_only_what_they_need_and_those_alike_share_a_parcel() -> None:
    control = Control(1)
    control.move(3, ["5"], np.ones(1))
    keeping, parcel = Keeping(b"\1\2\3\4", control), Parcel(b"model")
    keeping.learn(5, answered=True)
    keeping.learn(6, answered=True)
    sent = keeping.address(dict.fromkeys((4, 5, 6, 7), parcel))
    assert sent[6] is parcel
    assert dict(sent[5].beside) == {"control-round": 3}
    assert dict(sent[4].beside) == {"personal": b"\1\2\3\4"}
    assert sent[4] is sent[7]
    question = Question({"round": 4}, b"program")
    assert [question.nbytes(sent[node]) for node in (4, 5, 6)] == [16, 12, 12]
    assert question.content(sent[5])["task"]["control-round"] == 3
    keeping.learn(6, answered=False)
    assert "personal" in keeping.address({6: parcel})[6].beside


def test_state_is_restored_as_it_was() -> None:
    control = Control(1)
    keeping = Keeping(b"1234", control)
    control.meet([2**64 - 1])
    control.move(3, ["5"], np.ones(1))
    keeping.learn(2**64 - 1, answered=True)
    other = Control(1)
    again = Keeping(b"1234", other)
    other.restore(control.state())
    again.restore(keeping.state())
    nodes = dict.fromkeys((5, 6, 2**64 - 1), Parcel(b""))
    assert again.address(nodes) == keeping.address(nodes)
    for one in (control, other):
        one.move(4, ["6"], np.ones(1))
    np.testing.assert_array_equal(other.value, control.value)
    again.forget_nodes()
    assert other.counted(5) == 0
    assert not other.value.any()
    assert all("personal" in parcel.beside for parcel in again.address(nodes).values())


@pytest.mark.parametrize("lasting", [0, 1, 2, 3])
def test_control_variates_go_on_where_most_clients_find_theirs_again(lasting: int) -> None:
    control = Control(1)
    keeping = Keeping(b"", control)
    for node in range(6):
        keeping.learn(node, answered=True, lasts=True)
    for node in range(lasting, 6):
        keeping.learn(node, answered=True, lasts=False)
        keeping.learn(node, answered=True)
    control.move(3, ["0", "1", "2"], np.ones(1))
    restored = Control(1)
    restored.restore(control.state())
    restored.forget_nodes()
    assert [restored.counted(node) for node in range(3)] == [3 if lasting >= 2 else 0] * 3
    assert bool(restored.value.any()) == (lasting >= 2)


def config(**settings: Any) -> ServerConfig:
    return from_flat(
        ServerConfig, {"data.name": "digits", "model.name": "digits_cnn", "model.input": "1x8x8", **settings}
    )


PRIVATE = {"privacy.epsilon": 8.0, "privacy.population": 100, "privacy.clip": 1.0}
PERSONAL = {"personal.layers": "out.*", "server.evaluate": "clients", "deploy.formats": ""}


@pytest.mark.parametrize("strategy", ["scaffold", "fednova", "fednova_prox"])
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"secure.enabled": True}, "server.strategy = .*secure aggregation"),
        (PRIVATE, "server.strategy = .*differential privacy"),
        ({"robust.aggregator": "median"}, "robust.aggregator"),
        ({"train.optimizer.name": "adam"}, "train.optimizer.name"),
        ({"train.schedule.over": "steps", "train.schedule.name": "cosine"}, "train.schedule.over"),
    ],
    ids=["secure", "private", "robust", "adam", "schedule"],
)
def test_strategies_are_refused_where_their_theory_does_not_hold(
    strategy: str, settings: dict[str, Any], named: str
) -> None:
    config(**{"server.strategy": strategy})
    with pytest.raises(ConfigError, match=named):
        config(**{"server.strategy": strategy, **settings})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"train.clip_norm": 1.0}, "train.clip_norm"),
        ({"uplink.codec": "randk"}, "uplink.codec = 'randk"),
        ({"uplink.codec": "uniform", "uplink.bits": 4.0}, "uplink.codec = 'uniform'"),
    ],
)
def test_scaffold_refuses_what_its_control_variates_cannot_follow(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config(**{"server.strategy": "scaffold", **settings})
    config(**{"server.strategy": "fednova", **settings})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({**PERSONAL, "server.evaluate": "central"}, "server.evaluate"),
        ({**PERSONAL, "deploy.formats": "onnx"}, "deploy.formats"),
        ({**PRIVATE, "personal.fine_tune_epochs": 1}, "personal.fine_tune_epochs"),
        ({"secure.enabled": True, "personal.fine_tune_epochs": 1}, "personal.fine_tune_epochs"),
        ({"personal.fine_tune_epochs": 1, "personal.fine_tune": "head", "train.lora_rank": 2}, "personal.fine_tune ="),
    ],
)
def test_personalisation_is_refused_where_it_would_say_other_than_it_does(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config(**settings)


def test_personal_layers_keep_their_first_values_in_the_servers_model() -> None:
    model = GlobalModel(config(**PERSONAL))
    before = model.state_dict()
    assert model.apply(np.ones(model.moving.size))
    after = model.state_dict()
    for name in after:
        assert np.array_equal(after[name], before[name]) == name.startswith("out."), name
    assert model.size == sum(array.size for array in before.values())
    assert model.head() == ["out.weight", "out.bias"]


@pytest.mark.parametrize(("layers", "said"), [("*", "leaves nothing"), ("nowhere.*", "fits no parameter")])
def test_layers_that_leave_nothing_or_are_not_there_are_refused(layers: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GlobalModel(config(**{**PERSONAL, "personal.layers": layers}))


def test_held_out_examples_are_kept_only_where_somebody_asks_for_them() -> None:
    assert config(**PERSONAL).task(1).personal.holdout == 0.2
    assert config().task(1).personal.holdout == 0
    hidden = {**PERSONAL, **PRIVATE, "server.evaluate": "none"}
    assert config(**hidden).task(1).personal.holdout == 0
