"""A trained PyTorch model as ONNX files, fp32 and INT8, with a manifest.

INT8 is the QDQ form: weights symmetric per output channel, activations asymmetric per tensor, ranges from calibration
inputs (min and max). Recurrent layers stay float32 in it: ONNX has no quantised GRU or LSTM.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.artefact import Artefact, write_manifest
from edge_runtime.errors import ConfigError, MissingPackageError, UnsupportedOpError

if TYPE_CHECKING:
    import torch

INPUT, OUTPUT = "input", "output"


def export(
    module: torch.nn.Module,
    state_dict: Mapping[str, NDArray[np.generic]],
    *,
    formats: Sequence[str] = ("onnx",),
    precision: str = "int8",
    calibration: Iterable[NDArray[np.generic]],
    out: str | Path,
) -> Artefact:
    """Write `model_fp32.onnx` (and `model_int8.onnx` for precision "int8") and `manifest.json` into `out`.

    Args:
        module: the model; its weights are replaced by those of `state_dict`.
        state_dict: arrays under the names of `module.state_dict()`.
        formats: "onnx" is what this version writes.
        precision: "fp32", or "int8" for both.
        calibration: batches of inputs (B, ...), at least one; the first gives shape and dtype of the export.
        out: folder to write to; made if it is not there.

    Returns:
        The artefact; its paths are keyed "onnx_fp32" and "onnx_int8", and "onnx" is the most compact of them.

    Raises:
        UnsupportedOpError: a format that cannot be written, or a model that ONNX cannot hold.
        ConfigError: unknown precision, or no calibration inputs.

    """
    if unknown := sorted(set(formats) - {"onnx"}):
        raise UnsupportedOpError(f"formats = {unknown}: this version writes onnx only")
    if precision not in ("fp32", "int8"):
        raise ConfigError(f"precision = {precision!r}: must be one of fp32, int8")
    inputs = [np.ascontiguousarray(batch) for batch in calibration]
    if not inputs or not len(inputs[0]):
        raise ConfigError("calibration is empty: give at least one batch of inputs")
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)

    files = {"onnx_fp32": directory / "model_fp32.onnx"}
    _write_fp32(module, state_dict, inputs[0], files["onnx_fp32"])
    if precision == "int8":
        files["onnx_int8"] = directory / "model_int8.onnx"
        _write_int8(files["onnx_fp32"], inputs, files["onnx_int8"])
    about = {
        "input": {"name": INPUT, "dtype": str(inputs[0].dtype), "shape": ["batch", *inputs[0].shape[1:]]},
        "calibration_examples": sum(map(len, inputs)),
    }
    artefact = write_manifest(directory, files, about)
    return Artefact({**files, "onnx": files.get("onnx_int8", files["onnx_fp32"])}, artefact.manifest)


def _write_fp32(
    module: torch.nn.Module, state_dict: Mapping[str, NDArray[np.generic]], example: NDArray[np.generic], path: Path
) -> None:
    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it, and says so less clearly
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "exporting needs torch, onnx and onnxscript: pip install 'hedgerow[server]'"
        ) from error
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state_dict.items()})
    module.eval()
    # A batch of two, so that torch.export does not take the batch size for a constant.
    x = torch.from_numpy(np.resize(example, (2, *example.shape[1:])))
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (x,),
                dynamo=True,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 20)},),
                verbose=False,
            )
    except Exception as error:  # the exporter raises many private types
        raise UnsupportedOpError(f"the model cannot be written as ONNX: {str(error).splitlines()[0]}") from error
    assert program is not None
    model = program.model_proto
    # Shapes inferred before the exporter transposed weights are stale, and the quantiser trips over them.
    del model.graph.value_info[:]
    path.write_bytes(model.SerializeToString())


def _write_int8(fp32: Path, inputs: Sequence[NDArray[np.generic]], path: Path) -> None:
    try:
        from onnxruntime import quantization as quant
    except ImportError as error:
        raise MissingPackageError("quantising needs onnxruntime: pip install 'hedgerow[onnx]'") from error

    class Reader(quant.CalibrationDataReader):  # type: ignore[misc]  # the base class is untyped
        def __init__(self) -> None:
            self._left = iter(inputs)

        def get_next(self) -> dict[str, NDArray[np.generic]] | None:
            batch = next(self._left, None)
            return None if batch is None else {INPUT: batch}

    # The quantiser leaves intermediate files beside its input; give it a folder of its own.
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        source = Path(scratch) / "fp32.onnx"
        source.write_bytes(fp32.read_bytes())
        quant.quantize_static(
            source,
            path,
            Reader(),
            quant_format=quant.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quant.QuantType.QInt8,
            weight_type=quant.QuantType.QInt8,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporter chatter (missing torchvision, preprocessing hints) off the user's terminal."""
    loggers: list[Any] = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
