"""Every part of a run, taken from a checkpoint: it goes on exactly as the one that the checkpoint was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError
from edge_runtime.privacy import Ledger, SampledGaussian
from edge_runtime.updates import TensorLayout, make_codec
from edge_runtime.updates.versions import Versions
from server.budget import LEDGER, Budget
from server.central import Central
from server.checkpoint import pack, unpack
from server.config import ServerConfig
from server.distributed import Distributed
from server.fleet import Fleet
from server.ftrl import Ftrl
from server.local import Local
from server.model import GlobalModel
from server.private import Privacy
from server.publish import DeltaModels
from server.rounds import RoundResult
from server.run_store import RunStore
from server.sampling import Participations
from server.strategy import STRATEGIES
from server.sum_plan import SummedUpdates
from simulations.resume import MOST_BLOBS, ClientStates

SIZE = 500


def config(**values: Any) -> ServerConfig:
    base = {"server.cohort": 5, "server.rounds": 8, "server.min_updates": 1}
    return from_flat(ServerConfig, base | {name.replace("__", "."): value for name, value in values.items()})


def goes_on(make: Callable[[], Any], step: Callable[[Any, int], Any]) -> None:
    """Three steps, a checkpoint, and three more of both: equal answers, and equal states at the end."""
    first = make()
    for number in (1, 2, 3):
        step(first, number)
    second = make()
    second.restore(unpack(pack(first.state())))
    assert pack(second.state()) == pack(first.state())
    for number in (4, 5, 6):
        np.testing.assert_equal(step(second, number), step(first, number))
    assert pack(second.state()) == pack(first.state())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("lever", ["", "importance"])
def test_the_model(strategy: str, lever: str) -> None:
    settings = {"data.name": "digits", "model.name": "digits_cnn", "train.trainer": "torch", "compress.lever": lever}
    settings |= {"compress.every": 2, "server.strategy": strategy}

    def step(model: GlobalModel, number: int) -> np.ndarray:
        assert model.apply(np.random.default_rng(number).normal(0, 0.1, model.moving.size))
        return model.weights

    goes_on(lambda: GlobalModel(from_flat(ServerConfig, settings)), step)


@pytest.mark.parametrize("delta", ["topk", "int8"])
def test_the_versions_that_nodes_are_sent(delta: str) -> None:
    layout = TensorLayout.of({"a": (30, 8), "b": (7,)})
    options = {"fraction": 0.2} if delta == "topk" else {}

    def step(publisher: DeltaModels, number: int) -> list[Any]:
        rng = np.random.default_rng(number // 2)  # every other round moves nothing
        publisher.publish(rng.normal(0, 0.1, layout.size).astype(np.float32), number)
        parcels = [publisher.parcel(node) for node in range(4)]
        publisher.learn(number % 4, publisher.model_id)
        return [(parcel.content, parcel.whole, parcel.model_id) for parcel in parcels]

    goes_on(lambda: DeltaModels(Versions(layout, layout, make_codec("float32"), make_codec(delta, **options)), 1), step)


def test_a_model_that_stayed_as_it_was_is_no_new_version_after_a_restart() -> None:
    layout = TensorLayout.of({"a": (40,)})
    rules = Versions(layout, layout, make_codec("float32"), make_codec("topk", fraction=0.2))
    first, weights = DeltaModels(rules, 1), np.linspace(-1, 1, 40, dtype=np.float32)
    first.publish(np.zeros(40, np.float32), 1)
    first.publish(weights, 2)
    second = DeltaModels(rules, 1)
    second.restore(unpack(pack(first.state())))
    second.publish(weights.copy(), 3)
    assert second.model_id == first.model_id
    second.learn(1, second.model_id)
    assert not second.parcel(1).whole
    second.forget_nodes()
    assert second.parcel(1).whole


PRIVATE = {"privacy__noise_multiplier": 1.5, "privacy__population": 20, "data__clients": 20}


@pytest.mark.parametrize("mechanism", [Central, Ftrl])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_noise_clip_and_participations(mechanism: type[Central | Ftrl], clip: float) -> None:
    name = "central" if mechanism is Central else "ftrl"
    settings = config(privacy__mechanism=name, privacy__clip=clip, privacy__separation=2, **PRIVATE)

    def step(privacy: Central | Ftrl, number: int) -> Any:
        cohort = [number, number + 7]
        privacy.task(settings.task(number))
        total = privacy.aggregate()
        for _ in cohort:
            total.add(np.zeros(SIZE, np.float32), 1)  # zeros are not rounded at random
        privacy._entropy = lambda count: hashlib.shake_256(f"{number}".encode()).digest(count)
        mean = total.mean()
        privacy.settle(number, RoundResult(number, mean, tuple(map(str, cohort)), (), None, 0, None))
        asked = privacy.cohort(range(20), number + 1) if mechanism is Ftrl else None
        return mean, privacy.clip, asked

    goes_on(lambda: mechanism(settings, SIZE), step)


def secure(**values: Any) -> ServerConfig:
    return config(secure__enabled=True, secure__malicious_server=False, server__cohort=6, **values)


@pytest.mark.parametrize("mechanism", [Distributed, SummedUpdates])
def test_a_clip_that_moves_under_masks(mechanism: type[Distributed | SummedUpdates]) -> None:
    private = PRIVATE if mechanism is Distributed else {}
    settings = secure(**private)

    def step(privacy: Distributed | SummedUpdates, number: int) -> Any:
        plan = privacy.sum_plan(number, 6)
        clients = tuple(str((number + one) % 9) for one in range(5))
        privacy.settle(number, RoundResult(number, None, clients, (), None, 0, None, votes=float(number - 3)))
        return plan, privacy.clip

    goes_on(lambda: mechanism(settings, SIZE), step)


def test_fleet_and_participations() -> None:
    fleet = Fleet()
    fleet._running = {3: 7, 2**63 + 5: 8}
    other = Fleet()
    other.restore(unpack(pack(fleet.state())))
    assert other.versions == fleet.versions
    goes_on(Participations, lambda part, number: part.add([str(number), "1"]))


def test_the_budget_goes_on_with_its_own_ledger_and_a_line_that_was_cut_off_is_not_in_it(tmp_path: Path) -> None:
    event, earlier = SampledGaussian(4.0, 1.0), Ledger((SampledGaussian(8.0, 1.0),))
    store, budget = RunStore(tmp_path), Budget(0.0, 1e-5, earlier)
    budget.open(store)
    budget.spend(event, 1)
    store.append_line(LEDGER, '{"event": "sampled_gauss')
    store.close()
    store, again = RunStore(tmp_path, resume=True), Budget(0.0, 1e-5, earlier)
    again.open(store)
    assert (again.epsilon, again.ledger, again.own) == (budget.epsilon, budget.ledger, (event,))
    again.spend(event, 2)
    assert Ledger.from_json((tmp_path / LEDGER).read_text()) == again.ledger
    assert len(store.events("privacy_spent")) == 2
    with pytest.raises(ConfigError, match="does not begin with the ledger"):
        Budget(0.0, 1e-5, Ledger((SampledGaussian(9.0, 1.0),))).open(store)
    store.close()


def test_an_event_that_reached_the_ledger_alone_is_logged_when_the_run_goes_on(tmp_path: Path) -> None:
    store, budget = RunStore(tmp_path), Budget(0.0, 1e-5)
    budget.open(store)
    store.append_line(LEDGER, Ledger((SampledGaussian(4.0, 1.0),)).to_json())
    again = Budget(0.0, 1e-5)
    again.open(store)
    ((_, told),) = store.events("privacy_spent")
    assert told["epsilon"] == again.epsilon > 0
    store.close()


def opened(make: Callable[[], Privacy], directory: Path) -> Any:
    store = RunStore(directory, resume=(directory / "events.sqlite").exists())
    privacy = make()
    privacy.open(store)
    return privacy, store


def test_who_was_asked_in_a_round_that_was_never_closed_was_asked(tmp_path: Path) -> None:
    settings = config(privacy__mechanism="local", privacy__clip=1.0, **PRIVATE)
    make: Callable[[], Privacy] = lambda: Local(settings, SIZE)  # noqa: E731
    first, store = opened(make, tmp_path)
    asked = first.cohort(range(20), 1)
    # Killed right after it was written down who is asked, and before what that costs was.
    store.append("privacy_asked", {"clients": [str(node) for node in asked]}, 1)
    store.close()
    second, store = opened(make, tmp_path)
    assert not set(asked) & set(second.cohort(range(20), 1))
    assert second.final()["participations"] == len(second._budget.own) == 1
    store.close()


def test_a_sum_that_was_under_way_is_booked_once(tmp_path: Path) -> None:
    settings = secure(**PRIVATE)
    make: Callable[[], Privacy] = lambda: Distributed(settings, SIZE)  # noqa: E731
    first, store = opened(make, tmp_path)
    first.sum_plan(1, 6)
    store.close()
    for _ in range(2):
        second, store = opened(make, tmp_path)
        store.close()
        assert len(second._budget.own) == 1
        assert second.final()["epsilon_without_sampling"] > 0


class SomeClients:
    """Clients whose states change as a test says."""

    def __init__(self) -> None:
        self.all: dict[int, bytes] = {}
        self.changed: dict[int, bytes] = {}
        self.now_s = 12.5

    def change(self, states: dict[int, bytes]) -> None:
        self.all |= states
        self.changed |= states

    def changed_states(self) -> dict[int, bytes]:
        changed, self.changed = self.changed, {}
        return changed

    def restore_states(self, states: Mapping[int, bytes], now_s: float) -> None:
        self.all, self.now_s = dict(states), now_s

    def clock(self) -> float:
        return self.now_s


def test_clients_states_are_written_when_they_change_and_old_ones_go(tmp_path: Path) -> None:
    store, clients = RunStore(tmp_path), SomeClients()
    part = ClientStates(clients)
    part.open(store)
    for number in range(3 * MOST_BLOBS):
        clients.change({number % 100: f"{number}".encode(), 1000 + number: b"new"})
        state = unpack(pack(part.state()))
        store.forget(part.blobs(), [])
        assert len(list((tmp_path / "blobs").iterdir())) <= MOST_BLOBS + 1
    other = SomeClients()
    other.now_s = 0.0
    again = ClientStates(other)
    again.open(store)
    again.restore(state)
    assert (other.all, other.now_s) == (clients.all, 12.5)
    assert again.blobs() == part.blobs()
    store.close()
