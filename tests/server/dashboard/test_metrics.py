"""What Prometheus is told, read back with Prometheus' own parser."""

from __future__ import annotations

import httpx
from dashboards import serving
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from server.dashboard import prometheus
from server.run_store import RunStore, Sighting


def parsed(text):
    """Value by (name, labels)."""
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation and family.type == "gauge" for family in families)
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def test_figures_are_the_api_s(address):
    answer = httpx.get(f"{address}/metrics")
    assert answer.headers["content-type"] == prometheus.MEDIA_TYPE
    found = parsed(answer.text)
    runs = httpx.get(f"{address}/api/runs").json()["runs"]
    assert found[("hedgerow_runs",)] == len(runs)
    for run in runs:
        name = ("run", run["id"])
        for figure in ("round", "rounds", "accuracy", "loss", "uplink_bytes", "downlink_bytes", "epsilon", "seconds"):
            assert found.get((f"hedgerow_run_{figure}", name)) == run[figure], figure
        assert found["hedgerow_run_state", name, ("state", "finished")] == 1
        assert sum(found["hedgerow_run_state", name, ("state", state)] for state in prometheus.STATES) == 1


TEXT = st.text(max_size=300)


@given(
    ids=st.lists(st.text(min_size=1, max_size=80), unique=True, max_size=4),
    words=TEXT,
    figure=st.none() | st.floats() | st.integers(-(2**53), 2**53),
)
def test_whatever_a_run_is_called_it_can_be_parsed(ids, words, figure):
    run = dict.fromkeys(
        ("round", "rounds", "accuracy", "loss", "epsilon", "epsilon_limit", "uplink_bytes", "downlink_bytes", "seconds",
         "updated_s"), figure,
    )  # fmt: skip
    run |= dict.fromkeys(("model", "data", "strategy", "mode", "protection"), words)
    run |= {"state": "running", "now": dict.fromkeys(prometheus._NOW, 3), "devices": {"online": 1, "eligible": 1}}
    text = prometheus.write([run | {"id": name} for name in {prometheus._escaped(name): name for name in ids}.values()])
    found = parsed(text)
    written = [name[1][1] for name in found if name[0] == "hedgerow_round_asked"]
    plain = {"".join(char if char.isprintable() or char == "\n" else "?" for char in name) for name in ids}
    assert set(written) == plain


def test_the_number_of_series_does_not_grow_with_the_fleet(tmp_path):
    store = RunStore(tmp_path / "going")
    store.append("run_started", {"server.rounds": 3})
    store.append("round_planned", {"asked": ["1"], "goal": 1, "mode": "sync"}, 1)
    counts = []
    for devices in (1, 500):
        store.seen(Sighting(node, 4e9, {"eligible": node % 2 == 0, "running": node}) for node in range(devices))
        with serving(tmp_path) as address:
            found = parsed(httpx.get(f"{address}/metrics").text)
        counts.append(len(found))
        assert found["hedgerow_devices_online", ("run", "going")] == devices
        assert found["hedgerow_devices_eligible", ("run", "going")] == (devices + 1) // 2
    store.close()
    assert counts[0] == counts[1]


def test_the_number_of_runs_is_bounded():
    run = dict.fromkeys((*prometheus._FIGURES, "updated_s", "now"), None)
    run |= dict.fromkeys(("model", "data", "strategy", "mode", "protection"), "") | {"state": "finished"}
    found = parsed(prometheus.write([run | {"id": str(number)} for number in range(1000)]))
    assert len({name[1] for name in found if len(name) > 1}) <= prometheus.MOST_RUNS + 3
