"""SCAFFOLD, FedNova and personal layers against their papers' algorithms, written out in NumPy, on least squares.

The rounds are played by the product's own parts, codec and state included; only the network is not there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from clients.exchange import encode_update, sent_control
from clients.round import Own, Workbench
from clients.state import ClientState
from edge_runtime.config import from_flat
from edge_runtime.train.batches import Examples
from edge_runtime.train.factory import make_trainer, unpack_program
from server.checkpoint import pack, unpack
from server.config import ServerConfig, counting_of
from server.model import GlobalModel
from server.private import NoPrivacy
from server.rounds import OpenRound, RoundResult, Update

Vector = NDArray[np.float64]


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1, bias=False)


@pytest.fixture(params=["engine", "torch"])
def trainer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(linear=linear))
    return str(request.param)


class Memory:
    """A client's store."""

    def __init__(self) -> None:
        self._held: dict[str, bytes] = {}

    def read(self, name: str, most: int) -> bytes | None:
        return self._held.get(name)

    def write(self, name: str, content: bytes) -> None:
        self._held[name] = content

    lasts = True

    def claim(self, round_number: int, step: str) -> bool:
        return True


@dataclass
class Client:
    """Least squares over rows A w = b; f(w) = |A w - b|^2 / rows."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]

    @property
    def examples(self) -> Examples:
        return Examples(self.a, self.b)

    def gradient(self, w: Vector) -> Vector:
        return 2 / len(self.a) * self.a.T.astype(float) @ (self.a @ w - self.b[:, 0])


def clients(seed: int, rows: Sequence[int]) -> list[Client]:
    """Clients whose optima are far apart and whose curvatures differ."""
    rng = np.random.default_rng(seed)
    made = []
    for count in rows:
        a = rng.normal(size=(count, 3)) * rng.uniform(0.3, 1.5, size=3)
        made.append(Client(a.astype(np.float32), (a @ rng.normal(0, 3, size=3))[:, None].astype(np.float32)))
    return made


class Federation:
    """A server and its clients in one place."""

    def __init__(self, trainer: str, peers: Sequence[Client], strategy: str, **settings: Any) -> None:
        values = {
            "model.entry": f"{__name__}:linear",
            "model.input": "3",
            "train.trainer": trainer,
            "train.loss": "mse",
            "train.batch_size": 8,
            "train.optimizer.momentum": 0.0,
            "server.strategy": strategy,
            **settings,
        }
        self.config = from_flat(ServerConfig, values)
        self.model = GlobalModel(self.config)
        self.privacy = NoPrivacy(self.config, self.model.moving.size)
        self.peers, self.states = peers, [ClientState(Memory()) for _ in peers]
        task = self.config.task(1)
        packed = self.model.program(1)
        program = unpack_program(packed) if packed else None
        made = make_trainer(
            self.config.model, task.train, program=program, proximal_mu=task.proximal_mu, correction=task.control
        )
        self.bench = Workbench(made, control=task.control)
        self.number = 0

    @property
    def weights(self) -> Vector:
        return self.model.weights.astype(float)

    def play(self, cohort: Sequence[int], lost: Sequence[int] = ()) -> RoundResult:
        """One round; the answers of `lost` clients do not arrive."""
        self.number += 1
        task, control = self.config.task(self.number), self.model.control
        if control is not None:
            control.meet(range(len(self.peers)))
        opened = OpenRound(
            self.number,
            {node: str(node) for node in cohort},
            self.model.moving,
            self.config.uplink.build(),
            1,
            self.privacy.aggregate(),
            counting_of(self.config, self.number),
        )
        sent = self.model.sent
        for node in cohort:
            state, own = self.states[node], Own()
            counted = control.counted(node) if control is not None else 0
            if control is not None:
                own = Own(control=state.control(self.bench.parts.control, counted))
            update = self.bench.train(task, sent, self.peers[node].examples, node, own)
            payload = encode_update(task, update.delta, self.bench.tensors, state, node)
            if control is not None:
                moved = own.control + sent_control(task, payload, self.bench.tensors)
                state.keep_control(self.bench.parts.control, counted, self.number, moved)
            if node not in lost:
                opened.receive(node, Update(payload, update.examples, update.loss, update.steps))
        result = opened.close("lost")
        assert result.delta is not None
        assert self.model.apply(result.delta, tau_eff=result.tau_eff, number=self.number, clients=result.clients)
        return result

    def drift(self) -> float:
        """How far c is from the mean of the c_i that clients go on from."""
        control, layout = self.model.control, self.bench.parts.control
        assert control is not None
        own = [state.control(layout, control.counted(node)) for node, state in enumerate(self.states)]
        return float(np.abs(control.value - np.mean(own, axis=0)).max())


def scaffold(w: Vector, peers: Sequence[Client], cohorts: Sequence[Sequence[int]], lr: float, k: int) -> list[Vector]:
    """Karimireddy et al. 2020, algorithm 1 with option II and full gradients; the server's step is 1."""
    c, own, path = np.zeros(3), np.zeros((len(peers), 3)), []
    for cohort in cohorts:
        moved, changed = np.zeros(3), np.zeros(3)
        for i in cohort:
            y = w.copy()
            for _ in range(k):
                y -= lr * (peers[i].gradient(y) - own[i] + c)
            fresh = own[i] - c + (w - y) / (k * lr)
            moved, changed = moved + (y - w), changed + (fresh - own[i])
            own[i] = fresh
        w = w + moved / len(cohort)
        c = c + changed / len(peers)
        path.append(w)
    return path


def optimum(peers: Sequence[Client], shares: Sequence[float]) -> Vector:
    """Where the weighted sum of the clients' objectives is least."""
    parts = [(p / len(c.a) * c.a.T.astype(float), c) for p, c in zip(shares, peers, strict=True)]
    return np.linalg.solve(sum(t @ c.a for t, c in parts), sum(t @ c.b[:, 0] for t, c in parts))


LR, K = 0.05, 10
LOCAL = {"train.optimizer.lr": LR, "train.epochs": K}


def test_scaffold_takes_the_papers_steps_with_cohorts_of_some(trainer: str) -> None:
    peers = clients(1, [8] * 6)
    federation = Federation(trainer, peers, "scaffold", **LOCAL)
    cohorts = [np.random.default_rng(round_).choice(6, 3, replace=False) for round_ in range(25)]
    expected = scaffold(federation.weights, peers, cohorts, LR, K)
    for cohort, w in zip(cohorts, expected, strict=True):
        federation.play([int(i) for i in cohort])
        np.testing.assert_allclose(federation.weights, w, rtol=2e-5, atol=2e-5)


def test_scaffold_reaches_the_optimum_where_federated_averaging_stalls(trainer: str) -> None:
    peers = clients(2, [8] * 4)
    best = optimum(peers, [0.25] * 4)
    off = {}
    for strategy in ("scaffold", "fedavg"):
        federation = Federation(trainer, peers, strategy, **LOCAL)
        for _ in range(40):
            federation.play(range(4))
        off[strategy] = np.linalg.norm(federation.weights - best)
    assert off["scaffold"] < 1e-4
    assert off["fedavg"] > 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"uplink.codec": "int8"},
        {"uplink.codec": "topk,float16", "uplink.fraction": 0.7, "uplink.error_feedback": True},
    ],
    ids=["int8", "topk with error feedback"],
)
def test_the_servers_control_variate_stays_its_clients_mean_whatever_is_lost(settings: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, __name__, SimpleNamespace(linear=linear))
        peers = clients(3, [8] * 5)
        federation = Federation("engine", peers, "scaffold", **LOCAL, **settings)
        rng = np.random.default_rng(0)
        for _ in range(30):
            cohort = [int(i) for i in rng.choice(5, 4, replace=False)]
            federation.play(cohort, lost=cohort[:1])
            assert federation.drift() < 1e-5
        for _ in range(40):
            federation.play(range(5))
        assert np.linalg.norm(federation.weights - optimum(peers, [0.2] * 5)) < 0.02


def test_momentum_leaves_scaffolds_fixed_point_where_it_is(trainer: str) -> None:
    peers = clients(4, [8] * 3)
    federation = Federation(trainer, peers, "scaffold", **{**LOCAL, "train.optimizer.momentum": 0.5})
    for _ in range(40):
        federation.play(range(3))
    assert np.linalg.norm(federation.weights - optimum(peers, [1 / 3] * 3)) < 1e-3


def test_a_restored_server_goes_on_as_the_first_would_have() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, __name__, SimpleNamespace(linear=linear))
        peers = clients(5, [8] * 4)
        first, second = (Federation("torch", peers, "scaffold", **LOCAL) for _ in range(2))
        for _ in range(3):
            first.play([0, 2])
        kept = unpack(pack({"model": first.model.state(), "keeping": first.model.keeping.state()}))
        second.model.restore(kept["model"])
        second.model.keeping.restore(kept["keeping"])
        second.states, second.number = first.states, first.number
        np.testing.assert_array_equal(first.model.sent, second.model.sent)
        # The first goes on and is lost after a round that its clients have played; the second plays it again.
        first.play([1, 2])
        after = first.model.sent
        second.play([1, 2])
        np.testing.assert_array_equal(second.model.sent, after)
        second.model.keeping.forget_nodes()
        assert not second.model.sent[3:].any()


# FedNova: one row per client, many times over, so that every batch has the client's full gradient.


ROWS = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.6, 0.6]])  # no w fits all: b is 3, -2, 1 and -4


def one_row_clients(batches: Sequence[int]) -> list[Client]:
    return [
        Client(np.tile(a, (8 * m, 1)).astype(np.float32), np.full((8 * m, 1), b, np.float32))
        for a, b, m in zip(ROWS, (3, -2, 1, -4), batches, strict=False)
    ]


def fednova(w: Vector, peers: Sequence[Client], rounds: int, lr: float, epochs: int, m: float, mu: float) -> Vector:
    """Wang et al. 2020, equation 6, with d_i the client's movement over lr |a_i|_1 by its closed forms."""
    shares = np.array([len(peer.a) for peer in peers]) / sum(len(peer.a) for peer in peers)
    for _ in range(rounds):
        directions, totals = [], []
        for peer in peers:
            steps = epochs * len(peer.a) // 8
            y, velocity = w.copy(), np.zeros(3)
            for _ in range(steps):
                velocity = m * velocity + peer.gradient(y) + mu * (y - w)
                y -= lr * velocity
            if mu:
                total = (1 - (1 - lr * mu) ** steps) / (lr * mu)
            else:
                total = (steps - m * (1 - m**steps) / (1 - m)) / (1 - m)
            directions.append((w - y) / lr / total)
            totals.append(total)
        w = w - lr * (shares @ totals) * (shares @ np.array(directions))
    return w


BATCHES = [1, 2, 6, 12]


@pytest.mark.parametrize(
    ("strategy", "momentum", "mu"), [("fednova", 0.0, 0.0), ("fednova", 0.6, 0.0), ("fednova_prox", 0.0, 0.8)]
)
def test_fednova_takes_the_papers_steps(trainer: str, strategy: str, momentum: float, mu: float) -> None:
    peers = one_row_clients(BATCHES)
    settings = {"train.optimizer.lr": 0.02, "train.epochs": 2, "train.optimizer.momentum": momentum}
    federation = Federation(trainer, peers, strategy, **settings, **({"server.proximal_mu": mu} if mu else {}))
    expected = fednova(federation.weights, peers, 20, 0.02, 2, momentum, mu)
    for _ in range(20):
        federation.play(range(4))
    np.testing.assert_allclose(federation.weights, expected, rtol=1e-4, atol=1e-4)


def test_fednovas_fixed_point_is_the_objectives_and_federated_averagings_is_not(trainer: str) -> None:
    peers = one_row_clients(BATCHES)
    best = optimum(peers, np.array(BATCHES) / sum(BATCHES))
    off = {}
    for strategy in ("fednova", "fedavg"):
        federation = Federation(trainer, peers, strategy, **{"train.optimizer.lr": 0.02, "train.epochs": 1})
        for _ in range(100):
            federation.play(range(4))
        off[strategy] = np.linalg.norm(federation.weights - best)
    assert off["fednova"] < 0.15 * off["fedavg"]
    assert off["fedavg"] > 0.2


def test_with_equal_steps_fednova_is_federated_averaging(trainer: str) -> None:
    peers = clients(8, [8] * 3)
    ends = []
    for strategy in ("fednova", "fedavg"):
        federation = Federation(trainer, peers, strategy, **LOCAL)
        for _ in range(5):
            federation.play(range(3))
        ends.append(federation.weights)
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_an_update_that_claims_more_steps_than_it_can_have_made_costs_its_client_the_round(trainer: str) -> None:
    federation = Federation(trainer, one_row_clients([1, 2]), "fednova", **LOCAL)
    opened = OpenRound(
        1,
        {0: "0", 1: "1"},
        federation.model.moving,
        federation.config.uplink.build(),
        1,
        federation.privacy.aggregate(),
        counting_of(federation.config, 1),
    )
    payload = federation.config.uplink.build().encode_vector(
        np.ones(3, np.float32), federation.model.moving, round_number=1
    )
    opened.receive(0, Update(payload, 8, 0.5, K + 1))
    opened.receive(1, Update(payload, 16, 0.5, 2 * K))  # two batches in an epoch
    result = opened.close("")
    assert [failure.client for failure in result.failures] == ["0"]
    assert "claims 11 local steps" in result.failures[0].reason
    assert result.tau_eff == pytest.approx(2 * K)
