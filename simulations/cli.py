"""`hedgerow simulate`, `hedgerow run` and `hedgerow bench`. Heavy imports happen when a command runs."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from edge_runtime.errors import ConfigError, MissingPackageError


def simulate_command(parser: argparse.ArgumentParser) -> None:
    """Train a whole federation on this machine, on real data, and write a report."""
    parser.add_argument("scenario", nargs="?", help="a shipped scenario's name or a .toml file (default: mnist)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; may be repeated"
    )
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/SCENARIO-TIME)")
    parser.add_argument(
        "--resume", metavar="DIR", help="go on with the run in this directory, after its last closed round"
    )
    parser.set_defaults(run=_simulate)


def run_command(parser: argparse.ArgumentParser) -> None:
    """Start a run on this machine's `hedgerow serve`, with real devices; list, stop or resume runs."""
    from server.options import add_state

    parser.add_argument("scenario", nargs="?", help="a shipped scenario's name or a .toml file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; may be repeated"
    )
    parser.add_argument("--name", help="of the run and its directory (default: SCENARIO-TIME)")
    parser.add_argument("--follow", action="store_true", help="print progress until it ends; exit code 0 or 3")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--list", action="store_true", help="all runs there are and were")
    other.add_argument("--stop", metavar="NAME", help="end a run when the round in progress is closed")
    other.add_argument("--resume", metavar="NAME", help="let a run go on that failed, or was stopped with --now")
    parser.add_argument("--now", action="store_true", help="with --stop: do not wait for the round")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of --list")
    add_state(parser)
    parser.set_defaults(run=_run)


def bench_command(parser: argparse.ArgumentParser) -> None:
    """Run a benchmark of this checkout's benchmarks/ folder and print its table."""
    parser.add_argument("name", help="the benchmark's name")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to the benchmark")
    parser.set_defaults(run=_bench)


def _simulate(options: argparse.Namespace) -> int:
    from simulations.resume import kept_scenario
    from simulations.scenario import DEFAULT, load_scenario

    if options.resume:
        if options.scenario or options.out:
            raise ConfigError("--resume: the run directory says what is simulated; leave out the scenario and --out")
        scenario = kept_scenario(Path(options.resume), options.set)
    else:
        stem = Path(options.scenario or DEFAULT).stem
        out = options.out or f"runs/{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        scenario = load_scenario(options.scenario or DEFAULT, options.set, out=out)

    # Asked for, not imported: these are needed at the end of the run, and would weigh 100 MiB during it.
    late = ("matplotlib", "onnx", "flatbuffers", "ai_edge_litert")
    missing = [name for name in late if importlib.util.find_spec(name) is None]
    try:
        from server.federation import finished_run
        from simulations.console import Console
        from simulations.report import write_report
        from simulations.runner import simulate
    except ImportError as error:
        missing.append(error.name or str(error))
    if missing:
        raise MissingPackageError(f"simulating needs {', '.join(missing)}, not installed: pip install 'hedgerow[sim]'")
    if scenario.model.entry and options.scenario:
        sys.path.append(str(Path(options.scenario).resolve().parent))

    if options.resume and (finished := finished_run(Path(options.resume))) is not None:
        report = write_report(finished.directory)
        print(f"{options.resume}: the run is finished, there is nothing left to resume; report: {report}")
        return 0
    with Console() as console:
        finished = simulate(scenario, [console.on_event])
    report = write_report(finished.directory)
    console.summary(finished, report)
    return 0


def _run(options: argparse.Namespace) -> int:
    from edge_runtime.config import flatten, from_flat
    from server import cli
    from server.config import ServerConfig
    from simulations.scenario import read_scenario

    if options.list:
        return cli.list_runs(options)
    if options.stop:
        return cli.stop_run(options)
    if options.resume:
        return cli.resume_run(options)
    if not options.scenario:
        raise ConfigError("run: give a scenario, --list, --stop NAME or --resume NAME")
    values = read_scenario(options.scenario, options.set)
    if given := [name for name in values if name in ("run.out", "run.resume")]:
        raise ConfigError(f"{given[0]}: the server chooses the run directory; use --name")
    # How a simulation's clients misbehave is nothing to real devices.
    config = from_flat(ServerConfig, {name: value for name, value in values.items() if not name.startswith("faults.")})
    name = options.name or f"{Path(options.scenario).stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return cli.submit(options, name, flatten(config))


def _bench(options: argparse.Namespace) -> int:
    folder = Path(__file__).parent.parent / "benchmarks"
    if not folder.is_dir():
        folder = Path.cwd() / "benchmarks"
    names = sorted(path.stem.removeprefix("bench_").replace("_", "-") for path in folder.glob("bench_*.py"))
    if options.name not in names:
        there = ", ".join(names) if names else "none here; run this inside a checkout of the project"
        raise ConfigError(f"no benchmark {options.name!r}; there are {there}")
    script = folder / f"bench_{options.name.replace('-', '_')}.py"
    return subprocess.run([sys.executable, str(script), *options.arguments], check=False).returncode
