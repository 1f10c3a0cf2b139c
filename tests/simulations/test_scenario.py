"""Scenario files and `--set` overrides: what loads, what wins, and what every refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.config import flatten, from_flat
from edge_runtime.errors import ConfigError
from simulations.faults import FaultConfig
from simulations.scenario import Scenario, load_scenario, parse_override, shipped


@pytest.mark.parametrize("name", shipped())
def test_shipped_scenarios_load_and_survive_the_flat_form(name: str) -> None:
    scenario = load_scenario(name)
    assert from_flat(Scenario, flatten(scenario)) == scenario
    assert scenario.faults == FaultConfig()


def test_the_default_scenario_is_shipped() -> None:
    assert load_scenario() == load_scenario("mnist")


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "own.toml"
    path.write_text(text)
    return str(path)


def test_a_file_of_ones_own_is_read_and_the_rest_is_default(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, 'seed = 9\n[data]\nname = "digits"\n[train.optimizer]\nlr = 1\n'))
    assert (scenario.seed, scenario.data.name, scenario.train.optimizer.lr) == (9, "digits", 1.0)
    assert scenario.server == Scenario().server


def test_overrides_win_over_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "[server]\nrounds = 3\ncohort = 4\n")
    scenario = load_scenario(path, ["server.rounds=7", "server.rounds=8"])
    assert (scenario.server.rounds, scenario.server.cohort) == (8, 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server.rounds=5", 5),
        ("train.optimizer.lr = 1e-3", 1e-3),
        ("train.optimizer.nesterov=true", True),
        ('data.name="digits"', "digits"),
        ("data.name=digits", "digits"),
        ("data.path=/tmp/a b=c.npz", "/tmp/a b=c.npz"),
        ("deploy.formats=", ""),
        ('deploy.formats=["onnx"]', ["onnx"]),
    ],
)
def test_override_values_are_toml_or_else_bare_words(text: str, expected: object) -> None:
    key, value = parse_override(text)
    assert key == text.partition("=")[0].strip()
    assert value == expected
    assert type(value) is type(expected)


@given(st.integers(-(2**63), 2**63 - 1))
def test_whole_numbers_survive_an_override(number: int) -> None:
    assert parse_override(f"a={number}") == ("a", number)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_an_override(number: float) -> None:
    assert parse_override(f"a={number!r}") == ("a", number)


@pytest.mark.parametrize("text", ["server.rounds", "", "=5", "  =5"])
def test_a_malformed_override_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be of the form key=value"):
        load_scenario("mnist", [text])


REFUSED = {
    "unknown key": ("server.ronds=3", r"server\.ronds = 3: no such key; did you mean server\.rounds\?"),
    "unknown section": ("qqqq.zzzz=1", r"qqqq\.zzzz = 1: no such key; known sections: .*server"),
    "text for a number": ("server.rounds=many", r"server\.rounds = 'many': must be a whole number >= 1"),
    "fraction for a whole number": ("server.rounds=2.5", r"server\.rounds = 2\.5: must be a whole number"),
    "number for a truth": ("train.optimizer.nesterov=1", r"nesterov = 1: must be true or false"),
    "truth for a number": ("server.rounds=true", r"server\.rounds = True: must be a whole number"),
    "number for text": ("data.path=3", r"data\.path = 3: must be text"),
    "table for a value": ("server.rounds={a=1}", r"server\.rounds"),
    "no clients": ("data.clients=0", r"data\.clients = 0: must be a whole number >= 1"),
    "cohort beyond clients": ("server.cohort=51", r"server\.cohort = 51: must be <= data\.clients \(50\)"),
    "updates beyond cohort": ("server.min_updates=11", r"server\.min_updates = 11: must be <= server\.cohort \(10\)"),
    "negative rounds": ("server.rounds=-1", r"server\.rounds = -1: must be a whole number >= 1"),
    "NaN learning rate": ("train.optimizer.lr=nan", r"train\.optimizer\.lr = nan: must be a finite number > 0"),
    "infinite deadline": ("server.deadline_s=inf", r"server\.deadline_s = inf: must be a finite number"),
    "zero alpha": ("data.alpha=0", r"data\.alpha = 0.*: must be a finite number > 0"),
    "unknown data": ("data.name=imagenet", r"data\.name = 'imagenet': must be .*one of .*digits.*mnist"),
    "unknown model": ("model.name=vit", r"model\.name = 'vit': must be .*one of .*lenet"),
    "unknown loss": ("train.loss=hinge", r"train\.loss = 'hinge': must be .*one of .*cross_entropy"),
    "unknown optimizer": ("train.optimizer.name=lion", r"train\.optimizer\.name = 'lion': must be .*one of .*sgd"),
    "unknown strategy": ("server.strategy=krum", r"server\.strategy = 'krum': must be .*one of .*fedavg"),
    "unknown codec": ("uplink.codec=zip", r"uplink\.codec = .*zip.*: must be .*one of float32"),
    "no codec of deltas": ("downlink.delta=zip", r"downlink\.delta = .*zip.*: must be .*one of float32"),
    "codec that is not exact": ("downlink.codec=topk", r"downlink\.codec = 'topk': must be .*one of float32, float16"),
    "bits of a codec without": ("uplink.bits=4", r"uplink\.codec float32 has no option bits"),
    "bits out of range": ("uplink.codec=uniform uplink.bits=9", r"uplink\.bits = 9: must be .*<= 8"),
    "bits that are not whole": ("uplink.codec=uniform uplink.bits=2.5", r"uplink\.bits = 2\.5: must be a whole number"),
    "bits without deltas": ("downlink.bits=4", r"downlink\.bits = 4.*: must be 0 while downlink\.delta is empty"),
    "fraction of a codec without": (
        "downlink.delta=int8 downlink.fraction=0.1",
        r"downlink\.delta int8 has no option fraction",
    ),
    "feedback of an unbiased codec": (
        "uplink.codec=randk,int8 uplink.error_feedback=true",
        r"uplink\.error_feedback = True: must be false with randk,int8",
    ),
    "feedback of nothing": ("uplink.error_feedback=true", r"uplink\.error_feedback = True: must be false with float32"),
    "stages in the wrong order": ("uplink.codec=float16,topk", r"uplink\.codec = 'float16,topk': must be transforms"),
    "unknown format": ("deploy.formats=onnx,coreml", r"deploy\.formats = .*coreml.*: must be"),
    "fault rate beyond one": ("faults.crash=1.5", r"faults\.crash = 1\.5: must be a finite number >= 0 and <= 1"),
    "negative fault rate": ("faults.nan=-0.1", r"faults\.nan = -0\.1: must be"),
}


@pytest.mark.parametrize(("override", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_setting_is_refused_with_key_value_and_range(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_scenario("mnist", override.split(" "))
    assert "\n" not in str(caught.value)


def test_fault_rates_that_add_up_to_more_than_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"faults: the rates add up to 1\.1; must be <= 1"):
        load_scenario("mnist", ["faults.crash=0.6", "faults.nan=0.5"])


def test_the_same_refusals_hold_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean train\.optimizer\.momentum\?"):
        load_scenario(write(tmp_path, "[train.optimizer]\nmomentun = 0.5\n"))


@pytest.mark.parametrize("text", ["[data", "seed = ", "seed = 1\nseed = 2\n"])
def test_what_is_not_toml_is_refused_with_the_files_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"own\.toml: cannot be read as TOML"):
        load_scenario(write(tmp_path, text))


def test_what_is_not_text_is_refused_with_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(ConfigError, match=r"own\.toml: cannot be read as TOML"):
        load_scenario(str(tmp_path / "own.toml"))


@pytest.mark.parametrize("name", ["nowhere.toml", "no-such-scenario", "../mnist", ""])
def test_a_scenario_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError, match="mnist") as caught:
        load_scenario(name)
    assert repr(name) in str(caught.value)
