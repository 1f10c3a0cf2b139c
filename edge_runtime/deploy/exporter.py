"""From a trained model to model files: one float graph, one quantised graph, and a writer for each format.

nn.Module | Program | FloatModel -> FloatModel, folded -> ranges -> QuantisedModel -> bytes of every format -> manifest
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.artefact import Artefact, write_manifest
from edge_runtime.deploy.graph.calibrate import calibrate as measure_ranges
from edge_runtime.deploy.graph.float_model import FloatModel, batch_prime, checked
from edge_runtime.deploy.graph.fold import fold, hard_activations
from edge_runtime.deploy.graph.quantise import quantise
from edge_runtime.deploy.graph.quantised import QuantisedModel
from edge_runtime.deploy.trust.golden import write_golden
from edge_runtime.errors import ConfigError, MissingPackageError, UnsupportedOpError
from edge_runtime.ir.graph import Value
from edge_runtime.program.program import Program

if TYPE_CHECKING:
    import torch

Inputs = Sequence[NDArray[np.generic]]
Contents = Mapping[str, Mapping[str, bytes]]  # files by format and precision
PRECISIONS = ("fp32", "int8")
GOLDEN_ROWS = 4


@dataclass(frozen=True, slots=True)
class Format:
    """How a format's files end, who writes them ("module:function"), and the batch they take; 0 for any."""

    suffix: str
    writer: str
    batch: int
    needs: str


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", "edge_runtime.deploy.formats.onnx:write_onnx", 0, "onnx"),
    "tflite": Format(".tflite", "edge_runtime.deploy.formats.tflite:write_tflite", 1, "flatbuffers and ai-edge-litert"),
    "engine": Format(".hedgerow", "edge_runtime.deploy.formats.engine:write_engine", 1, "numpy"),
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that is ready for every writer: folded, and quantised where that was asked for."""

    float_model: FloatModel
    quantised: QuantisedModel | None
    calibration_examples: int
    input_range: tuple[float, float]  # of the calibration inputs

    def contents(self, name: str, batch: int | None = None) -> dict[str, bytes]:
        """The files of format `name`, by precision.

        Raises:
            UnsupportedOpError: what the format cannot hold, by the op's name and the line of the user's module.

        """
        models: dict[str, FloatModel | QuantisedModel] = {"fp32": self.float_model}
        if self.quantised is not None:
            models["int8"] = self.quantised
        return {precision: write(model, name, batch) for precision, model in models.items()}

    def golden_inputs(self, rows: int = GOLDEN_ROWS) -> NDArray[np.generic]:
        """Inputs (rows, ...) that a device tries the model on: drawn, for they travel, and examples are somebody's."""
        value, (low, high) = self.float_model.input, self.input_range
        rng, shape = np.random.default_rng(rows), (rows, *value.shape[1:])
        if value.dtype == "i64":
            return rng.integers(int(low), int(high) + 1, shape)
        return rng.uniform(low, high, shape).astype(np.float32)


def export(
    model: torch.nn.Module | Program | FloatModel,
    state_dict: Mapping[str, NDArray[np.generic]] | None = None,
    *,
    formats: Sequence[str] = ("onnx",),
    precision: str = "int8",
    calibration: Iterable[NDArray[np.generic]],
    out: str | Path,
    calibrate: str = "minmax",
    weight_bits: int | Mapping[str, int] = 8,
    activations: bool = True,
    hard: bool = False,
    batch: int | None = None,
) -> Artefact:
    """Write `model_fp32` and, for precision "int8", `model_int8` in each format, and `manifest.json`, into `out`.

    Args:
        model: a module, a Program that `build` made in this process, or a `FloatModel` that a compression lever gave.
        state_dict: trained arrays under the names of the module's state_dict; None for those that the model has.
        formats: of "onnx", "tflite", "engine" (the engine's own, `.hedgerow`).
        precision: "fp32", or "int8" for both.
        calibration: batches of inputs (B, ...), at least one; they give the ranges of activations, and the first one
            shape and dtype of the input.
        out: folder to write to; made if it is not there.
        calibrate: how ranges are found: "minmax", "percentile", "entropy" or "mse".
        weight_bits: 2 to 8 for all weights, or by name; what is stored in fewer than 8 bits is smaller, not faster.
        activations: False for integers in storage alone (weight-only).
        hard: replace costly activations by clipped lines first (`graph/fold.py`).
        batch: the batch size that the files take; 0 for any, None for each format's own (ONNX any, the others 1).

    Returns:
        The artefact; its paths are keyed "onnx_fp32", "onnx_int8", ..., and "onnx" is the most compact of them.

    Raises:
        UnsupportedOpError: an op that a format cannot hold, named; or a format that is none.
        ConfigError: an unknown precision or method, or no calibration inputs.

    """
    if unknown := sorted(set(formats) - set(FORMATS)):
        raise UnsupportedOpError(f"formats = {unknown}: there are {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision = {precision!r}: must be one of {', '.join(PRECISIONS)}")
    prepared = prepare(
        model,
        state_dict,
        list(calibration),
        precision=precision,
        calibrate=calibrate,
        weight_bits=weight_bits,
        activations=activations,
        hard=hard,
    )
    contents = {name: prepared.contents(name, batch) for name in formats}
    return write_files(prepared, contents, Path(out))


def prepare(
    model: torch.nn.Module | Program | FloatModel,
    state_dict: Mapping[str, NDArray[np.generic]] | None,
    calibration: Inputs,
    *,
    precision: str = "int8",
    calibrate: str = "minmax",
    weight_bits: int | Mapping[str, int] = 8,
    activations: bool = True,
    hard: bool = False,
) -> Prepared:
    """`export`'s steps up to the writers."""
    inputs = [np.ascontiguousarray(one) for one in calibration]
    if not inputs or not len(inputs[0]):
        raise ConfigError("calibration is empty: give at least one batch of inputs")
    float_model = fold(float_model_of(model, state_dict, inputs[0]))
    if hard:
        float_model = hard_activations(float_model)
    quantised = None
    if precision == "int8":
        ranges = measure_ranges(float_model, inputs, calibrate)
        quantised = quantise(float_model, ranges, weight_bits=weight_bits, activations=activations)
    low, high = min(float(one.min()) for one in inputs), max(float(one.max()) for one in inputs)
    return Prepared(float_model, quantised, sum(map(len, inputs)), (low, high))


def float_model_of(
    model: torch.nn.Module | Program | FloatModel,
    state_dict: Mapping[str, NDArray[np.generic]] | None,
    example: NDArray[np.generic],
) -> FloatModel:
    """The model's graph in evaluation mode with the weights of `state_dict`."""
    if isinstance(model, FloatModel):
        return model if state_dict is None else model.with_weights(_floats(state_dict))
    if isinstance(model, Program):
        if model.forward is None:
            raise ConfigError("a Program from a file has no graph to export; give the module it was built from")
        prime = batch_prime(model.forward(2))
        graph = model.forward(prime)
        given = dict(model.initial) if state_dict is None else dict(state_dict)
        if missing := sorted(set(graph.state) - set(given)):
            raise ConfigError(f"the state_dict has no {missing[0]}, which the model uses")
        return checked(FloatModel(graph, _floats({name: given[name] for name in graph.state}), prime))
    try:
        from edge_runtime.deploy.graph.captured import captured_model
    except ImportError as error:
        raise MissingPackageError("exporting a module needs PyTorch: pip install 'hedgerow[server]'") from error
    return captured_model(model, example, state_dict)


def _floats(tensors: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
    return {name: np.asarray(one, np.float32) for name, one in tensors.items()}


def write(model: FloatModel | QuantisedModel, name: str, batch: int | None = None) -> bytes:
    """The bytes of `model` in format `name`."""
    if batch is not None and batch < 0:
        raise ConfigError(f"batch = {batch}: must be a number of rows, or 0 for any")
    one = FORMATS[name]
    module, _, function = one.writer.partition(":")
    try:
        writer: Any = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise MissingPackageError(f"writing {name} needs {one.needs}: pip install 'hedgerow[server]'") from error
    content: bytes = writer(model, batch=one.batch if batch is None else batch)
    return content


def write_files(prepared: Prepared, contents: Contents, directory: Path, **about: Any) -> Artefact:
    """Write the files of `contents[format][precision]`, what they answer to golden inputs, and the manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for name, of in contents.items():
        for precision, content in of.items():
            path = directory / file_name(name, precision)
            path.write_bytes(content)
            files[f"{name}_{precision}"] = path
    listed = dict(files)
    with contextlib.suppress(MissingPackageError):  # a runtime that is not here; who signs the folder can add them
        listed["golden"], about["golden"] = write_golden(directory, files.values(), prepared.golden_inputs())
    artefact = write_manifest(directory, listed, {**contract(prepared), **about})
    smallest = {name: min(of, key=lambda precision: len(of[precision])) for name, of in contents.items() if of}
    best = {name: files[f"{name}_{precision}"] for name, precision in smallest.items()}
    return Artefact({**files, **best}, artefact.manifest)


def file_name(name: str, precision: str) -> str:
    return f"model_{precision}{FORMATS[name].suffix}"


def contract(prepared: Prepared) -> dict[str, Any]:
    """What the manifest says of input and output, whatever the format: shapes as PyTorch's, -1 for the batch."""
    model = prepared.float_model

    def spec(name: str, value: Value) -> dict[str, Any]:
        shape = [-1 if n % model.batch == 0 else n for n in value.shape]
        return {"name": name, "dtype": {"f32": "float32", "i64": "int64"}[value.dtype], "shape": shape}

    return {
        "input": spec("input", model.input),
        "output": spec("output", model.output),
        "parameters": model.parameters,
        "calibration_examples": prepared.calibration_examples,
    }
