"""The API against the run directories that it stands for."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.dashboard import answers
from server.dashboard.api import thinned

ANSWERS = {
    "": answers.Details,
    "/rounds": answers.Rounds,
    "/devices": answers.Devices,
    "/privacy": answers.Privacy,
    "/models": answers.Models,
    "/events": answers.Events,
}


def record(runs, name):
    return json.loads((runs / name / "run.json").read_text())


@pytest.mark.parametrize("name", ["plain", "private", "secure"])
@pytest.mark.parametrize("part", ANSWERS)
def test_an_answer_is_of_its_type_and_of_nothing_more(client, name, part):
    answer = client.get(f"/api/runs/{name}{part}")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert ANSWERS[part].model_validate(found, strict=True).model_dump(exclude_unset=True) == found


@pytest.mark.parametrize("name", ["plain", "private", "secure"])
def test_figures_are_those_of_run_json(client, runs, name):
    written, details = record(runs, name), client.get(f"/api/runs/{name}").json()
    for figure in ("uplink_bytes", "downlink_bytes", "accuracy", "loss", "epsilon", "parameters"):
        assert details[figure] == written["final"][figure], figure
    assert details["uplink_bytes"] == sum(row["uplink_bytes"] for row in written["rounds"]) > 0
    assert details["config"] == written["config"]
    assert (details["state"], details["round"], details["now"]) == ("finished", 3, None)
    rows = client.get(f"/api/runs/{name}/rounds").json()["rounds"]
    assert rows == [{key: row[key] for key in row if key != "failures"} for row in written["rounds"]]


def test_the_list_holds_every_run_newest_first(client):
    runs = client.get("/api/runs").json()["runs"]
    assert [run["id"] for run in runs] == ["secure", "private", "plain"]
    for run in runs:
        answers.Summary.model_validate(run, strict=True)
        details = client.get(f"/api/runs/{run['id']}").json()
        assert run == {name: details[name] for name in run}


def test_rounds_after_one(client):
    rows = client.get("/api/runs/plain/rounds", params={"after": 1}).json()["rounds"]
    assert [row["round"] for row in rows] == [2, 3]


@given(count=st.integers(0, 300), most=st.integers(2, 60))
def test_thinned_rows_are_spread_evenly_with_both_ends(count, most):
    kept = thinned(list(range(count)), most)
    assert len(kept) == min(count, most)
    assert kept == sorted(set(kept))
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)
    if count > most:
        steps = [b - a for a, b in pairwise(kept)]
        assert max(steps) - min(steps) <= 1


def test_every_listed_file_is_what_stands_in_the_run(client, runs):
    written = record(runs, "plain")["final"]
    models = client.get("/api/runs/plain/models").json()
    for name in models["downloads"]:
        answer = client.get(f"/api/runs/plain/files/{name}")
        assert answer.content == (runs / "plain" / name).read_bytes()
        assert answer.headers["content-disposition"].startswith("attachment")
    current = next(version for version in models["versions"] if version["current"])
    assert current["sha256"] == written["model_sha256"]
    assert set(written["deploy"]["files"]) <= set(models["downloads"])
    for version in models["versions"]:
        content = client.get(f"/api/runs/plain/files/models/{version['sha256']}.safetensors").content
        if len(content) == version["bytes"]:
            assert hashlib.sha256(content).hexdigest() == version["sha256"]
    by_file = {row["file"]: row for row in models["artefacts"]}
    for row in written["deploy"]["formats"].values():
        assert (by_file[row["file"]]["bytes"], by_file[row["file"]]["accuracy"]) == (row["nbytes"], row["accuracy"])


@pytest.mark.parametrize(
    "name",
    ["events.sqlite", "lock", "privacy.ledger", "../plain/run.json", "%2e%2e/plain/run.json", "models%2f..%2frun.json",
     "/etc/passwd", "..%2f..%2fetc%2fpasswd", "run.json%00.txt", "", "models/" + 64 * "0" + ".safetensors"],
)  # fmt: skip
def test_no_other_file_is_given(client, name):
    answer = client.get(f"/api/runs/plain/files/{name}")
    assert answer.status_code == 404
    assert answer.json().keys() == {"error"}


def test_links_are_not_followed(runs, tmp_path):
    from server.run_files import open_file

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").symlink_to(runs / "plain" / "model.safetensors")
    (tmp_path / "run" / "models").symlink_to(runs / "plain")
    assert open_file(tmp_path / "run", "model.safetensors") is None
    assert open_file(tmp_path / "run", "models/run.json") is None


def test_events_page_back_to_the_first(client, runs):
    seen, before = [], {}
    while page := client.get("/api/runs/plain/events", params={"limit": 7, **before}).json()["events"]:
        seen += page
        before = {"before": page[-1]["id"]}
    ids = [event["id"] for event in seen]
    assert ids == sorted(ids, reverse=True)
    assert ids[-1] == 1
    assert (seen[0]["kind"], seen[-1]["kind"]) == ("run_finished", "run_started")
    closed = client.get("/api/runs/plain/events", params={"kind": "round_closed"}).json()["events"]
    assert [event["round"] for event in closed] == [3, 2, 1]


def test_privacy_is_what_the_rounds_spent(client, runs):
    assert client.get("/api/runs/plain/privacy").json() == {"mechanism": "none"}
    told, written = client.get("/api/runs/private/privacy").json(), record(runs, "private")
    assert told["events"] == [{"round": row["round"], "epsilon": row["epsilon"]} for row in written["rounds"]]
    assert told["mechanism"] == written["final"]["privacy"]["mechanism"]
    assert told["epsilon"] == written["final"]["epsilon"]


@pytest.mark.parametrize("path", ["/api/runs/nobody", "/api/runs/..", "/api/runs/nobody/rounds", "/api/nothing", "/x"])
def test_what_is_not_there(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json().keys() == {"error"}


def test_the_description_needs_no_other_machine(client):
    page, style = client.get("/docs"), client.get("/docs.css")
    assert page.headers["content-type"].startswith("text/html")
    assert style.headers["content-type"].startswith("text/css")
    for word in ("http://", "https://", "<script", "style="):
        assert word not in page.text
    for path in client.get("/openapi.json").json()["paths"]:
        assert path.replace("{name}", "{name}") in page.text
