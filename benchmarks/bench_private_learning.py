"""What secure aggregation and differential privacy cost in accuracy and bytes: whole runs, each in a fresh process.

1. scikit-learn's digits, a 64-128-10 perceptron (9,610 parameters), 100 label-skewed clients, all in every round, five
   local steps, 40 rounds: float32 in the clear beside secure aggregation of 4-bit values, of all coordinates and of a
   random quarter. Accuracy is the mean of the last five rounds, the median over the seeds.
2. Fashion-MNIST over 3,000 clients, 100 of them drawn for each of 100 rounds (the scenario `private`): without privacy,
   with central noise, and with the clients' own noise under secure aggregation, for a budget of (8, 1e-5).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bars import Bar
from processes import HERE, save

RESULTS = HERE / "results" / "private_learning.json"
DIGITS = """
[data]
name = "digits"
clients = 100
partition = "dirichlet"
alpha = 0.5
[model]
entry = "perceptron:digits_mlp"
[train]
epochs = 5
batch_size = 32
[train.optimizer]
name = "sgd"
lr = 0.2
momentum = 0.0
[server]
rounds = 40
cohort = 100
min_updates = 50
[deploy]
formats = ""
"""
SECURE = ("secure.enabled=true", "privacy.clip=2.0")
DIGITS_CASES: dict[str, tuple[str, ...]] = {
    "float32, in the clear": (),
    "secure, 4 bit": (*SECURE, "secure.value_bits=4"),
    "secure, 4 bit, random 25 %": (*SECURE, "secure.value_bits=4", "secure.fraction=0.25"),
}
PRIVATE_CASES: dict[str, tuple[str, ...]] = {
    "no noise, in the clear": ("secure.enabled=false", "privacy.epsilon=0"),
    "central noise": ("secure.enabled=false",),
    "clients' noise, secure": (),
    "clients' noise, secure, random 25 %": ("secure.fraction=0.25",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="of the digits; Fashion-MNIST is run once a case")
    parser.add_argument("--part", choices=("digits", "private", "all"), default="all")
    options = parser.parse_args()
    seeds = range(1, options.seeds + 1)
    rows: list[dict[str, Any]] = []
    bars: list[Bar] = []
    if options.part != "private":
        digits = [row for name, settings in DIGITS_CASES.items() for row in runs("digits", name, settings, seeds)]
        rows += digits
        bars += judge_digits(digits)
    if options.part != "digits":
        private = [
            row for name, settings in PRIVATE_CASES.items() for row in runs("private", name, settings, range(1, 2))
        ]
        rows += private
        bars += judge_private(private)
    for bar in bars:
        print(bar)
    if options.part == "all":
        save(
            RESULTS, {"command": "hedgerow bench private-learning", "seeds": options.seeds}, rows, list(map(str, bars))
        )


def runs(task: str, name: str, settings: tuple[str, ...], seeds: range) -> list[dict[str, Any]]:
    """One row per seed, and a printed line of their medians."""
    rows = [{"task": task, "case": name, "seed": seed, **run(task, (*settings, f"seed={seed}"))} for seed in seeds]
    low, middle, high = (100 * of([row["accuracy"] for row in rows]) for of in (min, statistics.median, max))
    spread = f"({low:.1f} .. {high:.1f})" if len(rows) > 1 else ""
    epsilon = "      -" if rows[0]["epsilon"] is None else f"{rows[0]['epsilon']:7.3f}"
    print(
        f"{task:8} {name:36} accuracy {middle:5.1f} % {spread:14}  epsilon {epsilon}  "
        f"{rows[0]['bits']:6.2f} bits/parameter  {rows[0]['kilobytes']:7.1f} kB up a client and round, "
        "keys and shares included",
        flush=True,
    )
    return rows


def run(task: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """The closing figures of one whole run."""
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder) / "digits.toml"
        scenario.write_text(DIGITS)
        (Path(folder) / "perceptron.py").write_text((HERE / "perceptron.py").read_text())
        out = Path(folder) / "run"
        words = [word for setting in settings for word in ("--set", setting)]
        named = str(scenario) if task == "digits" else "private"
        command = [str(Path(sys.executable).with_name("hedgerow")), "simulate", named, *words, "--out", str(out)]
        started_s = time.monotonic()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
        record = json.loads((out / "run.json").read_text())
    evaluated = [row["accuracy"] for row in record["rounds"] if row["accuracy"] is not None]
    updates = sum(row["clients"] for row in record["rounds"])
    return {
        "accuracy": statistics.fmean(evaluated[-5:]) if task == "digits" else evaluated[-1],
        "epsilon": record["final"]["epsilon"],
        "privacy": record["final"]["privacy"],
        "bits": statistics.fmean(row["uplink_bits_per_parameter"] for row in record["rounds"]),
        "kilobytes": record["final"]["uplink_bytes"] / updates / 1e3,
        "dropped": sum(row["dropped"] for row in record["rounds"]),
        "seconds": round(time.monotonic() - started_s, 1),
    }


def judge_digits(rows: list[dict[str, Any]]) -> list[Bar]:
    plain, thin = (median(rows, name) for name in ("float32, in the clear", "secure, 4 bit, random 25 %"))
    bits = max(row["bits"] for row in rows if row["case"] == "secure, 4 bit, random 25 %")
    return [
        Bar("digits, 4 bit and random 25 %: points lost to float32", 100 * (plain - thin), 1.0, at_most=True),
        Bar("digits, 4 bit and random 25 %: bits per parameter", bits, 3.4, at_most=True),
    ]


def judge_private(rows: list[dict[str, Any]]) -> list[Bar]:
    spent = max(row["epsilon"] for row in rows if row["epsilon"] is not None)
    return [Bar("Fashion-MNIST, 3,000 clients, cohort 100, delta 1e-5: epsilon", spent, 8.0, at_most=True)]


def median(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.median(row["accuracy"] for row in rows if row["case"] == name)


if __name__ == "__main__":
    main()
