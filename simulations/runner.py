"""Runs a scenario: the server app in this process, client processes behind an in-process grid."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from flwr.app import Context, RecordDict

from edge_runtime import plugins
from edge_runtime.config import flatten
from edge_runtime.errors import BudgetError, ConfigError, MissingPackageError
from edge_runtime.train.config import DATASETS
from edge_runtime.train.factory import example_of, make_program, make_trainer
from edge_runtime.train.sources import DataSource
from server import personal
from server.app import make_app
from server.events import Event, Listener, RoundClosed, RunFinished
from server.federation import finished_run
from server.run_store import refuse_used, run_directory
from simulations.fleet import with_owners
from simulations.grid import RUN_ID, SERVER_NODE_ID, InProcessGrid
from simulations.resume import ClientStates, keep_scenario
from simulations.scenario import Scenario
from simulations.traces import Traces


def simulate(scenario: Scenario, listeners: Iterable[Listener] = ()) -> RunFinished:
    """Run a whole federation and leave its run directory; see `server.federation.federate` for what is raised.

    With `run.resume` the run in that directory goes on, if it is not finished; its scenario must be the one it began
    with: `simulations.resume.kept_scenario`.
    """
    if scenario.model.entry and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # the user's own model usually stands in the folder they are in
    directory = run_directory(scenario.run.out)
    if not scenario.run.resume:
        refuse_used(directory)  # before the seconds that loading and planning take
    elif (finished := finished_run(directory)) is not None:
        return finished
    scenario = replace(scenario, run=replace(scenario.run, out=str(directory)))
    given, (scenario, owners) = scenario, with_owners(scenario)
    ended: list[RunFinished] = []
    with InProcessGrid(
        scenario.data.clients,
        worker_count(scenario),
        node_config={
            "model-entry": scenario.model.entry,
            "dataset-path": scenario.data.path,
            "device-root": os.devnull,  # a simulated device is not this machine, and says nothing of it
            **owners.node_config,
        },
        own_folders=owners.own_folders,
        faults=scenario.faults,
        traces=make_traces(scenario),
        trainer="trainer" if scenario.train.trainer == "engine" else "torch_trainer",
    ) as grid:
        check(scenario)  # while the client processes start
        if not scenario.run.resume:
            keep_scenario(given, directory)

        def watch(event: Event) -> None:
            last = isinstance(event, RoundClosed) and event.row.round == event.rounds
            if last and not scenario.rollout.enabled and not personal.asks(scenario):
                grid.close()  # the export that follows needs the memory, the clients' work is done
            if isinstance(event, RunFinished):
                ended.append(event)

        app = make_app([*listeners, watch], clock=grid.clock, pause=grid.pause, peers=ClientStates(grid))
        app(grid, Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), dict(flatten(scenario))))
    return ended[0]


def make_traces(scenario: Scenario) -> Traces:
    """How long the scenario's devices take, each with its own share of the data."""
    source: DataSource = plugins.load(DATASETS, scenario.data.name)

    @cache
    def examples(node: int) -> int:
        return len(source.client_split(scenario.data, scenario.seed, node))

    return Traces(scenario.fleet, scenario.seed, scenario.data.clients, examples)


def worker_count(scenario: Scenario) -> int:
    """Client processes to start: as the scenario says, else one per core this process may use.

    Never more than there are clients at work at once.
    """
    wanted = scenario.server.workers or len(os.sched_getaffinity(0))
    return min(wanted, scenario.concurrency if scenario.server.mode == "async" else scenario.server.cohort)


def check(scenario: Scenario) -> None:
    """Load and split the data and let the model see a few rows, so that what does not fit shows before the first round.

    Raises:
        ConfigError: the data cannot be had or split as asked, or model, data and loss do not go together.

    """
    source: DataSource = plugins.load(DATASETS, scenario.data.name)
    few = source.client_split(scenario.data, scenario.seed, 0).rows(slice(64))
    try:
        program = None
        if scenario.train.trainer == "engine":
            task = scenario.task(1)
            example = example_of(scenario.model) if scenario.model.input else few.x
            program = make_program(
                scenario.model,
                scenario.train,
                example,
                proximal_mu=task.proximal_mu,
                correction=task.control,
                seed=scenario.seed,
            )
        make_trainer(scenario.model, scenario.train, program=program).evaluate([(few.x, few.y)])
    except (BudgetError, ConfigError, MissingPackageError):
        raise
    except Exception as error:  # UnsupportedOpError, or PyTorch's own, of whatever type the model raises
        raise ConfigError(
            f"model {scenario.model.entry or scenario.model.name} with loss {scenario.train.loss} does not fit data "
            f"{scenario.data.name} (x {few.x.shape} {few.x.dtype}, y {few.y.shape} {few.y.dtype}): {error}"
        ) from error
