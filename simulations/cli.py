"""`hedgerow simulate` and `hedgerow bench`. Heavy imports happen when a command runs."""

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
