"""Client updates per CPU-second: `hedgerow simulate` against a plain sequential PyTorch loop on the same task.

All train the clients of the same rounds from the same data with the same settings and sum their weights; none
evaluates. Ours trains with the engine, and with PyTorch in its place (train.trainer = "torch"). Each run is a fresh
process, the variants alternate, and the CPU time counted (user + system, over all the process's children) runs from the
end of round 1 to the end of the last, so none pays for its imports, nor ours for planning the training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from simulations.scenario import Scenario, load_scenario

SETTINGS = ("server.evaluate=none", 'deploy.formats=""')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("scenario", nargs="?", default="mnist")
    options = parser.parse_args()
    scenario = load_scenario(options.scenario, [*options.set, *SETTINGS, f"server.rounds={options.rounds}"])
    if options.variant:
        print(json.dumps(VARIANTS[options.variant](scenario)))
        return
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(options.repeats):
        for name in VARIANTS:
            rates[name].append(_fresh(name))
    updates = (options.rounds - 1) * scenario.server.cohort
    print(
        f"{options.scenario}: {updates} client updates a run, {options.repeats} runs each, fresh processes, alternating"
    )
    for name, values in rates.items():
        low, high = min(values), max(values)
        print(f"  {name:22} {statistics.median(values):7.1f} updates per CPU-second ({low:.1f} .. {high:.1f})")
    for name in list(VARIANTS)[1:]:
        ratios = [ours / plain for ours, plain in zip(rates[name], rates["plain torch loop"], strict=True)]
        print(f"  {name} / plain loop: {statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})")


def _fresh(variant: str) -> float:
    """Updates per CPU-second of one variant, in a process of its own with this one's arguments."""
    command = [sys.executable, "-P", __file__, "--variant", variant, *sys.argv[1:]]
    return float(
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    )


def _cpu_s() -> float:
    """User and system seconds of this process and its living children."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [me, *me.children(recursive=True)])


def hedgerow(scenario: Scenario, workers: int, trainer: str = "engine") -> float:
    """Our own simulation, through its public entry, timed by the events it emits."""
    from edge_runtime.config import flatten, from_flat
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
    return (scenario.server.rounds - 1) * scenario.server.cohort / (marks[1] - marks[0])


def plain(scenario: Scenario) -> float:
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
    return (scenario.server.rounds - 1) * scenario.server.cohort / (_cpu_s() - start)


VARIANTS = {
    "plain torch loop": plain,
    "hedgerow, 1 worker": lambda scenario: hedgerow(scenario, 1),
    "hedgerow, 2 workers": lambda scenario: hedgerow(scenario, 2),
    "hedgerow on PyTorch": lambda scenario: hedgerow(scenario, 1, "torch"),
}

if __name__ == "__main__":
    main()
