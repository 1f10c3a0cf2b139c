"""How far a federation gets on the bytes it sends: one task, every codec, several seeds.

A 784-64-10 perceptron on 6,000 images of Fashion-MNIST, 20 clients by Dirichlet(0.3), 10 of them a round for 25 rounds,
2 local epochs of SGD (0.02, momentum 0.9, batch 20), plain federated averaging, tested on all 10,000 test images. The
clients' draw, data and order are the seed's and the same for every codec. Curves wobble by two points from round to
round, so an accuracy is the mean of the last rounds: 3 of them for @10, 5 for @25.

With error feedback a client keeps what its last payload left out and adds it to its next update.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from processes import save
from recordings import image_clients, make_workbench

import edge_runtime as er
from clients.exchange import encode_update
from clients.round import EVALUATION_BATCH, Workbench
from clients.state import ClientState
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.config import DataConfig, RoundTask, TrainConfig, UplinkConfig
from edge_runtime.updates import Codec
from edge_runtime.updates.delta import FloatVector
from server.aggregate import WeightedSum
from simulations.datasets import FASHION_MNIST

CLIENTS, COHORT, ALPHA = 20, 10, 0.3
TRAIN = TrainConfig(epochs=2, batch_size=20)
OPTIMIZER = er.SGD(lr=0.02, momentum=0.9)
AT = {10: 3, 25: 5}  # round: over how many rounds up to it
ROUNDS = max(AT)
AT_TENTH_LOSES_MOST = 1.5  # points, of context at 0.1 bit to float32
MEASURED = frozenset(number for last, count in AT.items() for number in range(last - count + 1, last + 1))


@dataclass(frozen=True, slots=True)
class Sender:
    """How clients write their updates."""

    label: str
    uplink: UplinkConfig


def context(bits: float, **others: Any) -> UplinkConfig:
    return UplinkConfig(codec=("context",), bits=bits, **others)


SENDERS = (
    Sender("float32", UplinkConfig()),
    Sender("EDEN 1 bit", UplinkConfig(codec=("hadamard",), bits=1.0, unbiased=True)),
    Sender("context 0.25", context(0.25)),
    Sender("context 0.1", context(0.1)),
    Sender("context 0.1, feedback", context(0.1, error_feedback=True)),
    Sender("context 0.03", context(0.03)),
    Sender("context 0.03, feedback", context(0.03, error_feedback=True)),
    Sender("top 1 %, fp16", UplinkConfig(codec=("topk", "float16"), fraction=0.01)),
    Sender("STC 1 %", UplinkConfig(codec=("stc",), fraction=0.01)),
    Sender("STC 1 %, feedback", UplinkConfig(codec=("stc",), fraction=0.01, error_feedback=True)),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One federation: the bytes of all its payloads, and accuracy by round."""

    uplink_bytes: int
    parameters: int
    accuracy: dict[int, float]

    @property
    def bits(self) -> float:
        return 8 * self.uplink_bytes / (self.parameters * COHORT * ROUNDS)

    def at(self, last: int) -> float:
        return statistics.fmean(self.accuracy[number] for number in range(last - AT[last] + 1, last + 1))


class Task:
    """What is the same for every sender: the engine, the clients' data, the test images and who is asked when."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.clients = image_clients("reporting", CLIENTS, ALPHA, seed)
        self.bench: Workbench = make_workbench("mlp", self.clients[0], OPTIMIZER, TRAIN.batch_size, seed)
        self.initial = self.bench.tensors.layout.flatten(self.bench.initial)
        self.test: Examples = FASHION_MNIST.test_split(DataConfig(), seed)
        draw = np.random.default_rng([seed, 0xC0407])
        self.cohorts = [sorted(draw.choice(CLIENTS, COHORT, replace=False).tolist()) for _ in range(ROUNDS)]

    def train(self, client: int, number: int, weights: FloatVector) -> tuple[FloatVector, int]:
        """The client's raw update, and its number of examples."""
        task = RoundTask(round=number, seed=self.seed, train=TRAIN)
        update = self.bench.train(task, weights, self.clients[client], client)
        return update.delta, update.examples

    def accuracy(self, weights: FloatVector) -> float:
        trainer = self.bench.trainer
        trainer.load_state_dict(self.bench.tensors.layout.views(weights))
        return trainer.evaluate(Batches(self.test, EVALUATION_BATCH))["accuracy"]


class Memory:
    """What a client keeps, as a `Store`."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def read(self, name: str, most: int) -> bytes | None:
        return self._kept.get(name)

    def write(self, name: str, content: bytes) -> None:
        self._kept[name] = content


def federate(task: Task, sender: Sender) -> Run:
    """One run; the server sees only what it decodes from payloads."""
    codec: Codec = sender.uplink.build()
    layout, weights = task.bench.tensors.layout, task.initial
    states = [ClientState(Memory()) for _ in range(CLIENTS)]
    uplink_bytes, accuracy = 0, {}
    for number, cohort in enumerate(task.cohorts, start=1):
        total = WeightedSum(layout.size)
        for client in cohort:
            update, examples = task.train(client, number, weights)
            asked = RoundTask(round=number, seed=task.seed, uplink=sender.uplink)
            payload = encode_update(asked, update, task.bench.tensors, states[client], client)
            uplink_bytes += len(payload)
            total.add(codec.decode_vector(payload, layout, round_number=number), examples)
        weights = (weights + total.mean()).astype(np.float32)
        if number in MEASURED:
            accuracy[number] = task.accuracy(weights)
    return Run(uplink_bytes, layout.size, accuracy)


def print_accuracy(seeds: int, picture: str | None, json_file: str | None) -> None:
    """Run every sender with seeds 1 to `seeds` and print the table."""
    runs: dict[str, list[Run]] = {sender.label: [] for sender in SENDERS}
    for seed in range(1, seeds + 1):
        task = Task(seed)
        for sender in SENDERS:
            runs[sender.label].append(federate(task, sender))
    print(f"\nAccuracy over {seeds} seeds, mean (least-most); lost: points to float32 at {ROUNDS}, mean")
    heads = "".join(f"{f'acc@{last}':>22}" for last in AT)
    print(f"   {'codec':24} {'bits':>7} {'uplink MB':>10}{heads} {'lost':>6}")
    for label, own in runs.items():
        cells = "".join(f"{spread([run.at(last) for run in own]):>22}" for last in AT)
        print(f"   {label:24} {mean_bits(own):7.3f} {megabytes(own):10.3f}{cells} {lost(runs, label):6.2f}")
    bars = verdicts(runs)
    print("\nBars\n   " + "\n   ".join(bars))
    if picture:
        from codec_pictures import Dot, draw_accuracy

        dots = []
        for label, own in runs.items():
            ends = [run.at(ROUNDS) for run in own]
            named = f"{label} ({mean_bits(own):.2g} bit)"
            dots.append(Dot(named, megabytes(own), statistics.fmean(ends), min(ends), max(ends)))
        draw_accuracy(dots, ROUNDS, Path(picture))
        print(f"\nwrote {picture}")
    if json_file:
        about = {"command": "hedgerow bench codecs --accuracy", "seeds": seeds}
        rows = [
            {"codec": label, "seed": seed, **asdict(run)}
            for label, own in runs.items()
            for seed, run in enumerate(own, start=1)
        ]
        save(Path(json_file), about, rows, bars)


def verdicts(runs: dict[str, list[Run]]) -> list[str]:
    """What is claimed of 0.1 bit, with and without feedback, over the seeds that ran."""
    lines = []
    for label in ("context 0.1", "context 0.1, feedback"):
        gap = lost(runs, label)
        verdict = "holds" if gap <= AT_TENTH_LOSES_MOST else "MISSED"
        lines.append(f"{label}: loses points to float32 <= {AT_TENTH_LOSES_MOST}: {gap:.2f}, {verdict}")
        for rival in ("top 1 %, fp16", "STC 1 %", "STC 1 %, feedback"):
            ahead = lost(runs, rival) - gap
            lines.append(f"{label}: ahead of {rival} by points > 0: {ahead:.2f}, {'holds' if ahead > 0 else 'MISSED'}")
    return lines


def lost(runs: dict[str, list[Run]], label: str) -> float:
    """Points of accuracy at the end that float32 with the same seed has more, mean over the seeds."""
    pairs = zip(runs["float32"], runs[label], strict=True)
    return 100 * statistics.fmean(best.at(ROUNDS) - own.at(ROUNDS) for best, own in pairs)


def mean_bits(own: Sequence[Run]) -> float:
    return statistics.fmean(run.bits for run in own)


def megabytes(own: Sequence[Run]) -> float:
    return statistics.fmean(run.uplink_bytes for run in own) / 1e6


def spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f} ({min(values):.3f}-{max(values):.3f})"
