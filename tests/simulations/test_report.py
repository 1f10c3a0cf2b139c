"""report.html of real runs: a well-formed page that fetches nothing, shows its plots, and trusts no client's words."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from simulations.report import write_report
from simulations.runner import simulate
from simulations.scenario import load_scenario

VOID = {"br", "hr", "img", "input", "link", "meta"}
FETCHING = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "style"}


class Page(HTMLParser):
    """Checks that elements nest, and gathers tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def run(out: Path, *overrides: str) -> Path:
    tiny = (
        "data.name=digits model.name=digits_cnn data.clients=6 data.partition=iid train.epochs=1 server.cohort=4 "
        "server.min_updates=1 server.rounds=3"
    )
    return simulate(load_scenario("mnist", [*tiny.split(), f"run.out={out}", *overrides])).directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an INT8 model and a few failed clients."""
    return run(tmp_path_factory.mktemp("report") / "run", "faults.error=0.3")


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def page_of(directory: Path) -> Page:
    path = write_report(directory)
    assert path == directory / "report.html"
    return Page(path.read_text("utf-8"))


def test_the_page_nests_and_holds_three_plots(finished: Path) -> None:
    page = page_of(finished)
    assert page.tags.count("svg") == 3
    assert page.tags.count("path") > 3
    assert {"html", "head", "body", "table"} <= set(page.tags)


def test_nothing_is_fetched_from_outside(finished: Path) -> None:
    text = write_report(finished).read_text("utf-8")
    page = Page(text)
    assert not {"script", "iframe", "link", "object", "embed", "img"} & set(page.tags)
    for name, value in page.attributes:
        assert name not in FETCHING or "//" not in value
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text)


def test_the_page_shows_the_runs_own_figures(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    text = page_of(finished).text
    assert f"{100 * record['final']['accuracy']:.1f} %" in text
    assert f"{100 * record['final']['int8_accuracy']['onnx']:.1f} %" in text
    assert record["final"]["model_sha256"] in text
    failures = [failure for row in record["rounds"] for failure in row["failures"]]
    assert failures
    assert text.count("SimulatedFaultError: simulated error in training") == len(failures)
    assert all(key in text for key in record["config"])


def test_a_clients_words_are_shown_and_never_run(copied: Path) -> None:
    record = json.loads((copied / "run.json").read_text())
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"
    record["rounds"][0]["failures"] = [{"client": hostile, "reason": hostile}]
    record["config"]["data.path"] = hostile
    record["config"]["data.name"] = "</title>" + hostile
    (copied / "run.json").write_text(json.dumps(record))
    page = page_of(copied)
    assert not {"script", "img"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.text.count(hostile) >= 3


def test_rounds_without_figures_are_drawn_as_gaps(copied: Path) -> None:
    record = json.loads((copied / "run.json").read_text())
    for row in record["rounds"][:2]:
        row.update(loss=None, accuracy=None, train_loss=None, applied=False, unchanged="nobody came")
    (copied / "run.json").write_text(json.dumps(record))
    page = page_of(copied)
    assert page.tags.count("svg") == 3
    assert page.text.count("nobody came") == 2, "said in the text, not only where the mouse hovers"


def test_a_run_without_evaluation_and_without_export(tmp_path: Path) -> None:
    directory = run(tmp_path / "run", "server.evaluate=none")
    record = json.loads((directory / "run.json").read_text())
    assert [row["accuracy"] for row in record["rounds"]] == [None, None, None]
    page = page_of(directory)
    assert page.tags.count("svg") == 3
    assert record["final"]["deploy"]["skipped"] in page.text


def test_a_run_that_asks_for_no_export(tmp_path: Path) -> None:
    directory = run(tmp_path / "run", "deploy.formats=", "server.eval_every=3")
    assert "deploy" not in json.loads((directory / "run.json").read_text())["final"]
    page = page_of(directory)
    assert page.tags.count("svg") == 3
    assert "model.safetensors" in page.text
    assert ".onnx" not in page.text
