"""What an import costs a device: each in a fresh interpreter, compared with one that imports nothing of ours."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import edge_runtime
from edge_runtime import deploy, secagg, sums
from edge_runtime.train.config import ModelConfig, TrainConfig
from edge_runtime.train.factory import example_of, make_program

OURS = {"edge_runtime", "server", "clients", "simulations"}


def modules_after(code: str) -> set[str]:
    """All modules in a fresh interpreter that has run `code`."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def packages_after(code: str) -> set[str]:
    """Third-party packages that `code` loads, beyond those that this interpreter loads at start-up."""
    new = modules_after(code) - modules_after("")
    return {name.partition(".")[0] for name in new} - set(sys.stdlib_module_names) - OURS


@pytest.mark.parametrize(
    "module",
    [
        "edge_runtime",
        "edge_runtime.cli",
        "edge_runtime.deploy",
        "edge_runtime.device.policy",
        "edge_runtime.device.report",
        "edge_runtime.losses",
        "edge_runtime.secagg",
        "edge_runtime.sums",
    ],
)
def test_names_and_descriptions_load_the_standard_library_alone(module: str) -> None:
    assert packages_after(f"import {module}") == set()


@pytest.mark.parametrize(
    "module",
    [
        "edge_runtime.updates",
        "edge_runtime.engine.session",
        "edge_runtime.kernels.native",
        "edge_runtime.program.program",
        "edge_runtime.program.program_file",
        "edge_runtime.train.batches",
        "edge_runtime.train.config",
        "edge_runtime.train.factory",
        "edge_runtime.train.metrics",
        "edge_runtime.train.loop",
        "edge_runtime.train.trainer",
        "clients.datasets",
        "clients.round",
        *(module.name for module in pkgutil.iter_modules(deploy.__path__, "edge_runtime.deploy.")),
    ],
)
def test_the_devices_modules_load_numpy_at_most(module: str) -> None:
    assert packages_after(f"import {module}") <= {"numpy"}


@pytest.mark.parametrize(
    "module",
    [module.name for room in (secagg, sums) for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}.")],
)
def test_secure_sums_load_numpy_and_cryptography_at_most(module: str) -> None:
    native = {"_cffi_backend", "_openssl"}  # of cryptography
    assert packages_after(f"import {module}") <= {"numpy", "cryptography"} | native


# What a device would pay megabytes for without ever using it, and the rooms that make a Program rather than run it.
NEEDLESS = {
    "asyncio", "concurrent", "email", "hashlib", "http", "importlib.metadata", "inspect", "logging", "multiprocessing",
    "numpy.fft", "numpy.ma", "numpy.polynomial", "numpy.random", "socket", "ssl", "subprocess", "tempfile", "threading",
    "edge_runtime.building", "edge_runtime.capture", "edge_runtime.deploy", "edge_runtime.engine.reference",
    "edge_runtime.importance", "edge_runtime.passes", "edge_runtime.planner", "edge_runtime.plugins",
}  # fmt: skip


@pytest.fixture(scope="module")
def with_numpy() -> set[str]:
    return modules_after("import numpy")


def test_training_a_program_loads_what_training_takes(tmp_path: Path, with_numpy: set[str]) -> None:
    """From a file to a step, as on a device: Program, Trainer, batches without shuffling, evaluation."""
    model = ModelConfig(name="digits_cnn", input="1x8x8")
    path = make_program(model, TrainConfig(batch_size=4), example_of(model)).save(tmp_path / "digits.program")
    training = f"""
import numpy as np
import edge_runtime as er
from edge_runtime.train.batches import Batches, Examples
examples = Examples(np.zeros((6, 1, 8, 8), np.float32), np.zeros(6, np.int64))
trainer = er.Trainer(er.Program.load({str(path)!r}))
trainer.fit(Batches(examples, 4), epochs=2, validation=Batches(examples, 3))
trainer.load_state_dict(trainer.state_dict())
"""
    loaded = modules_after(training) - with_numpy
    assert "edge_runtime.train.trainer" in loaded
    assert {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names) <= {"numpy", "edge_runtime"}
    assert not {name for name in loaded if any(name == one or name.startswith(f"{one}.") for one in NEEDLESS)}


def test_a_client_app_loads_neither_pytorch_nor_the_compiler() -> None:
    loaded = modules_after("import clients.app, edge_runtime.train.trainer")
    assert "flwr" in loaded
    assert not {"torch", "edge_runtime.building", "edge_runtime.capture", "edge_runtime.planner"} & loaded


def test_every_public_name_is_there() -> None:
    for name in edge_runtime.__all__:
        assert getattr(edge_runtime, name) is not None
    assert set(edge_runtime.__all__) <= set(dir(edge_runtime))
    with pytest.raises(AttributeError, match="no_such_name"):
        edge_runtime.no_such_name  # noqa: B018 - the access is the test


def test_a_training_step_does_not_load_torchs_compiler() -> None:
    step = """
import numpy as np
from torch import nn
from edge_runtime import SGD, TorchTrainer
trainer = TorchTrainer(nn.Linear(2, 2), optimizer=SGD(0.1, momentum=0.9), proximal_mu=0.1)
trainer.step(np.zeros((1, 2), np.float32), np.zeros(1, np.int64))
"""
    loaded = modules_after(step)
    assert "torch.nn" in loaded
    assert not {"torch._dynamo", "torch._inductor"} & loaded
