"""Export and Runner on a really trained model: same answers as PyTorch, honest INT8, and nothing unverified is run."""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edge_runtime import deploy, losses, optimizers, plugins
from edge_runtime.deploy.artefact import MANIFEST, verified_bytes
from edge_runtime.deploy.trust.golden import GOLDEN
from edge_runtime.errors import ArtefactError, ConfigError, UnsupportedOpError
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.config import DATASETS, DataConfig
from edge_runtime.train.metrics import accuracy, agreement
from edge_runtime.train.torch_trainer import TorchTrainer
from simulations.models import DigitsCNN, digits_cnn

SEED = 1


@dataclass(frozen=True)
class Exported:
    """A trained digits model, its held-out rows, and what `export` made of it."""

    trainer: TorchTrainer
    test: Examples
    calibration_examples: int
    artefact: deploy.Artefact


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    source = plugins.load(DATASETS, "digits")
    data = DataConfig(name="digits", clients=1, partition="iid")
    train = source.client_split(data, SEED, 0)
    torch.manual_seed(SEED)
    trainer = TorchTrainer(digits_cnn(), loss=losses.CrossEntropy(), optimizer=optimizers.SGD(0.05, momentum=0.9))
    trainer.fit(Batches(train, 32, np.random.default_rng(SEED)), epochs=5)
    artefact = deploy.export(
        digits_cnn(),
        trainer.state_dict(),
        calibration=[train.x[:50], train.x[50:80]],
        out=tmp_path_factory.mktemp("exported") / "made" / "here",
    )
    return Exported(trainer, source.test_split(data, SEED), 80, artefact)


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    """The INT8 file, with its manifest and neighbours, in a folder that a test may spoil."""
    folder = shutil.copytree(exported.artefact.paths["onnx"].parent, tmp_path / "device")
    return folder / exported.artefact.paths["onnx"].name


# The answers.


@pytest.mark.parametrize("rows", [1, 7])
def test_fp32_answers_as_pytorch_does_at_any_batch_size(exported: Exported, rows: int) -> None:
    x = exported.test.x[:rows]
    ours = deploy.Runner.open(exported.artefact.paths["onnx_fp32"]).predict(x)
    assert ours.shape == (rows, 10)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, exported.trainer.predict(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7])
def test_int8_takes_any_batch_size_and_rows_do_not_touch_each_other(exported: Exported, rows: int) -> None:
    runner = deploy.Runner.open(exported.artefact.paths["onnx_int8"])
    together = runner.predict(exported.test.x[:rows])
    apart = np.concatenate([runner.predict(exported.test.x[i : i + 1]) for i in range(rows)])
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-5)


def test_int8_agrees_with_fp32_on_real_digits(exported: Exported) -> None:
    x, y = exported.test.x, exported.test.y
    fp32 = deploy.Runner.open(exported.artefact.paths["onnx_fp32"]).predict(x)
    int8 = deploy.Runner.open(exported.artefact.paths["onnx_int8"]).predict(x)
    assert accuracy(fp32, y) > 0.9
    assert agreement(fp32, int8) > 0.97
    assert accuracy(int8, y) > accuracy(fp32, y) - 0.02


def test_threads_change_nothing(exported: Exported) -> None:
    path = exported.artefact.paths["onnx_fp32"]
    one, two = (deploy.Runner.open(path, threads=threads).predict(exported.test.x[:7]) for threads in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_a_model_that_was_left_in_training_mode_is_exported_for_inference(tmp_path: Path) -> None:
    torch.manual_seed(SEED)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(72, 3))
    trainer = TorchTrainer(module)
    x = np.random.default_rng(SEED).normal(3, 2, (6, 1, 8, 8)).astype(np.float32)
    trainer.fit([(x, np.array([0, 1, 2, 0, 1, 2]))], epochs=3)
    expected, state = trainer.predict(x), trainer.state_dict()
    artefact = deploy.export(module.train(), state, precision="fp32", calibration=[x], out=tmp_path)
    ours = deploy.Runner.open(artefact.paths["onnx"]).predict(x)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


# The files.


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_int8_weights_are_int8_and_symmetric_per_output_channel(exported: Exported) -> None:
    model = onnx.load(exported.artefact.paths["onnx_int8"])
    values = initializers(model)
    channels = set()
    for node in model.graph.node:
        weight = values.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None and weight.dtype == np.int8 and weight.ndim >= 2:
            _, scale, zero_point = (values[name] for name in node.input)
            assert not zero_point.any()
            assert scale.shape in [(size,) for size in weight.shape]
            channels.add(scale.size)
    assert channels == {8, 42, 10}, "one scale for each channel of conv, hidden and out"


def test_int8_activations_are_quantised_per_tensor(exported: Exported) -> None:
    model = onnx.load(exported.artefact.paths["onnx_int8"])
    values = initializers(model)
    quantised = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert any(node.input[0] == "input" for node in quantised)
    for node in quantised:
        assert values[node.input[1]].size == 1
        assert values[node.input[2]].dtype == np.uint8  # the same grid, moved by 128: what ONNX Runtime multiplies


def test_no_large_weight_is_left_in_float(exported: Exported) -> None:
    values = initializers(onnx.load(exported.artefact.paths["onnx_int8"])).values()
    assert max(value.size for value in values if value.dtype == np.float32) <= 42
    assert sum(value.size for value in values if value.dtype == np.int8) > 5_800


@pytest.mark.parametrize("name", ["onnx_fp32", "onnx_int8"])
def test_a_file_is_whole_in_itself_and_valid_onnx(exported: Exported, name: str) -> None:
    model = onnx.load(exported.artefact.paths[name], load_external_data=False)
    assert not any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer)
    onnx.checker.check_model(model)


def test_the_folder_holds_models_golden_vectors_and_the_manifest_only(exported: Exported) -> None:
    folder = exported.artefact.paths["onnx"].parent
    assert {path.name for path in folder.iterdir()} == {"model_fp32.onnx", "model_int8.onnx", GOLDEN, MANIFEST}


def test_the_manifest_holds_true_sizes_and_hashes(exported: Exported) -> None:
    folder = exported.artefact.paths["onnx"].parent
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest == exported.artefact.manifest
    assert manifest["files"].keys() == {"model_fp32.onnx", "model_int8.onnx", GOLDEN}
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_manifest_says_what_goes_in(exported: Exported) -> None:
    manifest = exported.artefact.manifest
    assert manifest["version"] == 1
    assert manifest["input"] == {"name": "input", "dtype": "float32", "shape": [-1, 1, 8, 8]}
    assert manifest["calibration_examples"] == exported.calibration_examples


def test_the_compact_file_is_int8_and_smaller(exported: Exported) -> None:
    paths = exported.artefact.paths
    assert paths["onnx"] == paths["onnx_int8"]
    assert paths["onnx_int8"].stat().st_size < paths["onnx_fp32"].stat().st_size


def test_fp32_alone_writes_one_file(exported: Exported, tmp_path: Path) -> None:
    artefact = deploy.export(
        DigitsCNN(),
        exported.trainer.state_dict(),
        precision="fp32",
        calibration=[exported.test.x[:1]],
        out=str(tmp_path),
    )
    assert artefact.paths["onnx"] == artefact.paths["onnx_fp32"] == tmp_path / "model_fp32.onnx"
    assert {path.name for path in tmp_path.iterdir()} == {"model_fp32.onnx", GOLDEN, MANIFEST}
    assert artefact.paths["onnx"].read_bytes() == exported.artefact.paths["onnx_fp32"].read_bytes()


# What is refused.


def _change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _drop_entry(path: Path) -> None:
    manifest = path.with_name(MANIFEST)
    value = json.loads(manifest.read_text())
    del value["files"][path.name]
    manifest.write_text(json.dumps(value))


def _swap_models(path: Path) -> None:
    shutil.copy(path.with_name("model_fp32.onnx"), path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_change_a_byte, "changed or cut short"),
        (_truncate, "changed or cut short"),
        (_append, "changed or cut short"),
        (_swap_models, "changed or cut short"),
        (_drop_entry, r"no valid entry for model_int8\.onnx"),
        (lambda path: path.with_name(MANIFEST).unlink(), r"no readable manifest\.json"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
    ids=["changed byte", "truncated", "appended", "swapped", "no entry", "no manifest", "no file"],
)
def test_a_file_that_is_not_its_manifests_is_refused(copied: Path, spoil: Callable[[Path], None], said: str) -> None:
    deploy.Runner.open(copied)
    spoil(copied)
    with pytest.raises(ArtefactError, match=said):
        deploy.Runner.open(copied)


def test_verified_bytes_are_the_files(copied: Path) -> None:
    assert verified_bytes(copied) == copied.read_bytes()


@pytest.mark.parametrize("name", ["model.pt", "model", "model.onnx.bak"])
def test_a_file_of_another_suffix_is_refused(copied: Path, name: str) -> None:
    with pytest.raises(UnsupportedOpError, match=name):
        deploy.Runner.open(copied.rename(copied.with_name(name)))


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(1000)])
def test_bytes_that_are_no_model_are_refused(content: bytes) -> None:
    with pytest.raises(ArtefactError, match="ONNX"):
        deploy.Runner.of(content, ".onnx")


ROWS = np.zeros((2, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"formats": ("onnx", "coreml")}, UnsupportedOpError, "coreml"),
        ({"formats": ("litert",)}, UnsupportedOpError, "litert"),
        ({"precision": "int4"}, ConfigError, "'int4': must be one of fp32, int8"),
        ({"calibration": []}, ConfigError, "calibration is empty"),
        ({"calibration": [ROWS[:0]]}, ConfigError, "calibration is empty"),
    ],
)
def test_an_export_that_cannot_be_is_refused_before_it_writes(
    tmp_path: Path, arguments: dict[str, object], error: type[Exception], said: str
) -> None:
    module = digits_cnn()
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    with pytest.raises(error, match=said):
        deploy.export(module, state, **{"calibration": [ROWS], "out": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


class DataDependent(nn.Module):
    """Takes a branch that depends on values, which no static graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x) if float(x.sum()) > 0 else -self.out(x)


def test_a_model_that_no_graph_can_hold_is_refused_in_one_line(tmp_path: Path) -> None:
    module = DataDependent()
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    with pytest.raises(UnsupportedOpError, match=r"torch\.export cannot trace the model") as caught:
        deploy.export(module, state, calibration=[np.ones((2, 8), np.float32)], out=tmp_path)
    assert "\n" not in str(caught.value)


def test_the_public_names_stay_callable_after_their_modules_are_loaded() -> None:
    for module in pkgutil.iter_modules(deploy.__path__, "edge_runtime.deploy."):
        importlib.import_module(module.name)
    for name in deploy.__all__:
        assert callable(getattr(deploy, name)), name
