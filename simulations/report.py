"""`report.html` of a run: one page that needs no network, drawn from `run.json` alone."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from edge_runtime.errors import MissingPackageError
from server.rollout_report import rollout_lines

# Where two lines coincide, the dashes on top let the first one show.
LINES: tuple[dict[str, Any], ...] = (
    {"color": "#2f7d4f", "linewidth": 2.2},
    {"color": "#c7782b", "linewidth": 1.6, "linestyle": (0, (4, 2))},
)


def write_report(directory: Path) -> Path:
    """Draw `report.html` beside the `run.json` of a finished run; returns its path."""
    run = json.loads((directory / "run.json").read_text())
    plots = [
        (f"Accuracy on {run['final']['evaluated_on'] or 'nothing'}", _accuracy_plot(run["rounds"])),
        ("Loss", _loss_plot(run["rounds"])),
        ("Bytes per round, all clients", _bytes_plot(run["rounds"])),
    ]
    if private := run["final"].get("privacy"):
        plots.append((f"Privacy spent, at delta {private['delta']:g}", _privacy_plot(run["rounds"], private["limit"])))
    page = _template().render(
        run=run,
        rows=run["rounds"],
        final=run["final"],
        config=run["config"],
        plots=plots,
        private=private,
        rollout=run["final"].get("rollout"),
        rollout_lines=rollout_lines(run["final"]),
        lost=_lost(run["rounds"]),
        unchanged=[row for row in run["rounds"] if not row["applied"]],
        failures=[(row["round"], failure) for row in run["rounds"] for failure in row["failures"]],
    )
    path = directory / "report.html"
    path.write_text(page, "utf-8")
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda share: "-" if share is None else f"{100 * share:.1f} %"
    environment.filters["figure"] = lambda x: "-" if x is None else f"{x:.4g}" if isinstance(x, float) else x
    environment.filters["size"] = lambda n: f"{n / 1e6:.2f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"
    return environment.from_string(files("simulations").joinpath("templates/report.html.j2").read_text("utf-8"))


def _accuracy_plot(rows: Sequence[dict[str, Any]]) -> markupsafe.Markup:
    return _lines(rows, {"accuracy": "accuracy"}, "share correct")


def _loss_plot(rows: Sequence[dict[str, Any]]) -> markupsafe.Markup:
    return _lines(rows, {"loss": "global model", "train_loss": "clients, while training"}, "loss")


def _bytes_plot(rows: Sequence[dict[str, Any]]) -> markupsafe.Markup:
    columns = {"downlink_bytes": "server to clients", "uplink_bytes": "clients to server"}
    return _lines(rows, columns, "MB", scale=1e-6, from_zero=True)


def _privacy_plot(rows: Sequence[dict[str, Any]], limit: float | None) -> markupsafe.Markup:
    return _lines(rows, {"epsilon": "spent"}, "epsilon", from_zero=True, level=("budget", limit) if limit else None)


def _lost(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rounds in which secure aggregation lost clients, with how many in each phase."""
    return [row for row in rows if row.get("dropped_in") and any(row["dropped_in"].values())]


def _lines(
    rows: Sequence[dict[str, Any]],
    columns: dict[str, str],
    unit: str,
    *,
    scale: float = 1.0,
    from_zero: bool = False,
    level: tuple[str, float] | None = None,
) -> markupsafe.Markup:
    """The named columns against the round, as inline SVG; rounds without a value leave no point.

    `level` is a name and the height of a line across.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingPackageError("the report's plots need matplotlib: pip install 'hedgerow[sim]'") from error

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "hedgerow",
        "font.family": "sans-serif",
        "text.color": "#3b453f",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.6, 3.1), layout="constrained")
        axes = figure.subplots()
        for (column, label), line in zip(columns.items(), LINES, strict=False):
            points = [(row["round"], row[column] * scale) for row in rows if row[column] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) == 1 else None, **line)
        if level:
            axes.axhline(level[1], label=level[0], **LINES[1])
        axes.set_xlabel("round")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#e3e7e3")
        if (len(columns) > 1 or level) and axes.lines:
            axes.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = out.getvalue()
    return markupsafe.Markup(svg[svg.index("<svg") :])  # noqa: S704 - drawn by matplotlib from numbers
