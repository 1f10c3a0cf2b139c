"""Client updates per CPU-second: `hedgerow simulate` against a plain sequential PyTorch loop on the same task.

All train the clients of the same rounds from the same data with the same settings and sum their weights; none
evaluates. Ours trains with the engine, and with PyTorch in its place (train.trainer = "torch"). Each run is a fresh
process, the variants alternate, and the CPU time counted (user + system, over all the process's children) runs from the
end of round 1 to the end of the last, so none pays for its imports, nor ours for planning the training. The accuracy is
that of the last round's weights on the held-out examples; each variant shuffles in its own way.

Without a scenario there are two tasks: the demo's (50 clients of some 80 skewed digits, 3 epochs in batches of 16), and
rounds as short as they get: 125 clients of 32 digits each, one epoch in batches of 8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import psutil

from simulations.scenario import Scenario, load_scenario

if TYPE_CHECKING:
    import torch


class Outcome(TypedDict):
    rate: float  # client updates per CPU-second
    accuracy: float


SETTINGS = ("server.evaluate=none", 'deploy.formats=""')
TASKS = {
    "the demo's clients": ("server.cohort=10",),
    "32 examples in batches of 8": (
        "data.clients=125",
        "data.partition=iid",
        "train.epochs=1",
        "train.batch_size=8",
        "server.cohort=25",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("scenario", nargs="?")
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(VARIANTS[options.variant](_scenario(options.scenario, options.rounds, options.set))))
    elif options.scenario:
        _compare(options.scenario, options.scenario, options.rounds, options.repeats, options.set)
    else:
        for title, changes in TASKS.items():
            _compare(title, "mnist", options.rounds, options.repeats, [*changes, *options.set])


def _scenario(name: str, rounds: int, changes: Sequence[str]) -> Scenario:
    return load_scenario(name, [*changes, *SETTINGS, f"server.rounds={rounds}"])


def _compare(title: str, name: str, rounds: int, repeats: int, changes: Sequence[str]) -> None:
    """Run every variant `repeats` times, alternating, and print their rates, their ratios and their accuracy."""
    found: dict[str, list[Outcome]] = {variant: [] for variant in VARIANTS}
    for _ in range(repeats):
        for variant in VARIANTS:
            found[variant].append(_fresh(variant, name, rounds, changes))
    updates = (rounds - 1) * _scenario(name, rounds, changes).server.cohort
    print(f"{title}: {updates} client updates a run, {repeats} runs each, fresh processes, alternating")
    base = [one["rate"] for one in found["plain torch loop"]]
    for variant, outcomes in found.items():
        rates, accuracy = [one["rate"] for one in outcomes], statistics.median(one["accuracy"] for one in outcomes)
        ratios = [ours / plain for ours, plain in zip(rates, base, strict=True)]
        against = f"{statistics.median(ratios):5.2f}x ({min(ratios):.2f} .. {max(ratios):.2f})"
        print(
            f"  {variant:20} {statistics.median(rates):7.1f} updates per CPU-second ({min(rates):.1f} .. "
            f"{max(rates):.1f})  {against}  accuracy {accuracy:.3f}"
        )


def _fresh(variant: str, name: str, rounds: int, changes: Sequence[str]) -> Outcome:
    """One variant in a process of its own."""
    command = [sys.executable, "-P", __file__, name, "--variant", variant, "--rounds", str(rounds)]
    command += [part for change in changes for part in ("--set", change)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    outcome: Outcome = json.loads(output.splitlines()[-1])
    return outcome


def _cpu_s() -> float:
    """User and system seconds of this process and its living children."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [me, *me.children(recursive=True)])


def _accuracy(scenario: Scenario, module: torch.nn.Module) -> float:
    """Share of the held-out examples that `module` classifies rightly."""
    import torch

    from edge_runtime import plugins
    from edge_runtime.train.config import DATASETS

    test = plugins.load(DATASETS, scenario.data.name).test_split(scenario.data, scenario.seed)
    with torch.no_grad():
        return float((module(torch.from_numpy(test.x)).argmax(-1).numpy() == test.y).mean())


def hedgerow(scenario: Scenario, workers: int, trainer: str = "engine") -> Outcome:
    """Our own simulation, through its public entry, timed by the events it emits."""
    from safetensors.torch import load_file

    from edge_runtime.config import flatten, from_flat
    from edge_runtime.train.factory import make_module
    from server.events import Event, RoundClosed
    from simulations.runner import simulate

    marks = []

    def on_event(event: Event) -> None:
        if isinstance(event, RoundClosed) and event.row.round in (1, scenario.server.rounds):
            marks.append(_cpu_s())

    with tempfile.TemporaryDirectory() as folder:
        ours = {"server.workers": workers, "train.trainer": trainer, "run.out": str(Path(folder) / "run")}
        # Before the runner's own listener, which ends the client processes at the last round.
        simulate(from_flat(Scenario, {**flatten(scenario), **ours}), [on_event])
        module = make_module(scenario.model, scenario.seed)
        module.load_state_dict(load_file(Path(folder) / "run" / "model.safetensors"))
    rate = (scenario.server.rounds - 1) * scenario.server.cohort / (marks[1] - marks[0])
    return {"rate": rate, "accuracy": _accuracy(scenario, module)}


def plain(scenario: Scenario) -> Outcome:
    """What one would write by hand: load_state_dict, torch.optim, tensor slices, a running sum of weights."""
    import torch
    from torch.nn import functional

    from edge_runtime import plugins
    from edge_runtime.train.config import DATASETS
    from edge_runtime.train.factory import make_module
    from server.rounds import choose_cohort

    torch.set_num_threads(1)
    source = plugins.load(DATASETS, scenario.data.name)
    clients = [source.client_split(scenario.data, scenario.seed, client) for client in range(scenario.data.clients)]
    module = make_module(scenario.model, scenario.seed)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    options = scenario.train.optimizer
    make_optimizer = {
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=options.lr, momentum=options.momentum),
        "adam": lambda parameters: torch.optim.Adam(parameters, lr=options.lr),
    }[options.name]
    for number in range(1, scenario.server.rounds + 1):
        if number == 2:
            start = _cpu_s()
        total, count = {name: torch.zeros_like(value) for name, value in weights.items()}, 0
        for client in choose_cohort(range(scenario.data.clients), scenario.server.cohort, scenario.seed, number):
            x, y = torch.from_numpy(clients[client].x), torch.from_numpy(clients[client].y)
            module.load_state_dict(weights)
            optimizer = make_optimizer(module.parameters())
            for _ in range(scenario.train.epochs):
                order = torch.randperm(len(x))
                for at in range(0, len(x), scenario.train.batch_size):
                    rows = order[at : at + scenario.train.batch_size]
                    optimizer.zero_grad()
                    output = module(x[rows])
                    functional.cross_entropy(output.reshape(-1, output.shape[-1]), y[rows].reshape(-1)).backward()
                    optimizer.step()
            for name, value in module.state_dict().items():
                total[name] += len(x) * value
            count += len(x)
        weights = {name: value / count for name, value in total.items()}
    rate = (scenario.server.rounds - 1) * scenario.server.cohort / (_cpu_s() - start)
    module.load_state_dict(weights)
    return {"rate": rate, "accuracy": _accuracy(scenario, module)}


VARIANTS = {
    "plain torch loop": plain,
    "hedgerow, 1 worker": lambda scenario: hedgerow(scenario, 1),
    "hedgerow, 2 workers": lambda scenario: hedgerow(scenario, 2),
    "hedgerow on PyTorch": lambda scenario: hedgerow(scenario, 1, "torch"),
}

if __name__ == "__main__":
    main()
