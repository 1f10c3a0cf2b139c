"""What a person sees while a simulation runs: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from pathlib import Path

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from server.events import (
    ClientAnswered,
    Event,
    RolloutTold,
    RoundClosed,
    RunContinued,
    RunFinished,
    RunPaused,
    RunStarted,
)
from server.results import RoundRow, describe, personal_lines, privacy_lines
from server.rollout_report import rollout_lines


class Console:
    """Listens to a run and prints; a context manager, because a progress bar has to be taken down."""

    def __init__(self) -> None:
        self._out = rich.console.Console(highlight=False, markup=False)  # what clients say may hold brackets
        self._progress: Progress | None = None

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def on_event(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._start(event)
            case ClientAnswered() if self._progress is not None:
                self._progress.advance(self._progress.task_ids[0])
            case RoundClosed(row, rounds):
                self._round(row, rounds)
            case RolloutTold() | RunPaused() | RunContinued():
                (self._progress.print if self._progress else self._out.print)(event.line, soft_wrap=True)
            case _:
                pass

    def summary(self, finished: RunFinished, report: Path) -> None:
        """The closing table and where everything is."""
        final = finished.final
        table = Table(
            title=f"{final['parameters']:,} parameters after {_rounds(final['rounds_applied'])}", title_justify="left"
        )
        for heading in ("file", "size", "accuracy", "same class", "one row", "memory"):
            table.add_column(heading, justify="left" if heading == "file" else "right")
        trained = final["files"]["model.safetensors"]
        table.add_row("model.safetensors", _size(trained), _percent(final["accuracy"]), "", "", "")
        deploy = final.get("deploy", {})
        refused = []
        for name, row in deploy.get("formats", {}).items():
            if row["refused"]:
                refused.append(f"{row['file'] or name} is not released: {row['refused']}")
                continue
            table.add_row(
                row["file"],
                _size(row["nbytes"]),
                _percent(row["accuracy"]),
                _percent(row["agreement"]),
                f"{row['latency_us']:.0f} us",
                _size(row["peak_rss_bytes"]),
            )
        self._out.print(table)
        for line in refused:
            self._out.print(line, soft_wrap=True)
        if reason := deploy.get("skipped") or deploy.get("error"):
            self._out.print(f"no model file: {reason}")
        for line in [*privacy_lines(final), *personal_lines(final), *rollout_lines(final)]:
            self._out.print(line, soft_wrap=True)
        if final["evaluated_on"]:
            self._out.print(f"accuracy is on {final['evaluated_on']}")
        up, down = _size(final["uplink_bytes"]), _size(final["downlink_bytes"])
        self._out.print(f"{up} up, {down} down, {final['seconds']:.1f} s in all", soft_wrap=True)
        self._out.print(f"run directory: {finished.directory}", soft_wrap=True)
        self._out.print(f"report:        {report}", soft_wrap=True)

    def _start(self, event: RunStarted) -> None:
        config = event.config
        self._out.print(
            f"{config.data.name}: {config.data.clients} clients, {config.server.cohort} a round, "
            f"{_rounds(config.server.rounds)} of {config.server.strategy}; {event.parameters:,} parameters"
            + (f"; {config.protection}" if config.protection else ""),
            soft_wrap=True,
        )
        if event.closed:
            self._out.print(f"goes on after round {event.closed}")
        for warning in event.warnings:
            self._out.print(warning, soft_wrap=True)
        if self._out.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self._out,
            )
            cohort = config.server.cohort
            self._progress.add_task(
                "client updates", total=config.server.rounds * cohort, completed=event.closed * cohort
            )
            self._progress.start()

    def _round(self, row: RoundRow, rounds: int) -> None:
        text = describe(row, rounds)
        if self._progress is None:
            self._out.print(text, soft_wrap=True)
            return
        what_next = "exporting the model" if row.round == rounds else text
        self._progress.update(self._progress.task_ids[0], description=what_next)
        for failure in row.failures:
            self._progress.print(f"round {row.round}: client {failure.client}: {failure.reason}", soft_wrap=True)


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
