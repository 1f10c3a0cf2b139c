"""One runtime with one model in a process of its own: loads, says what that took, then times inferences when told to.

    inference_child.py RUNTIME FILE INPUT.npy

Prints a JSON line after loading: CPU milliseconds to load, MB of the process after the first inference, the output. For
each line with a number on stdin it prints CPU microseconds per inference, over at least that many CPU seconds. It
imports nothing that the runtime does not need, for the process is what is measured.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Predict = Callable[[Any], Any]


Load = Callable[[Path], Predict]

# Each imports its runtime, and gives what loads a model in it.


def engine() -> Load:
    importlib.import_module("edge_runtime.deploy.run.engine")  # which a runner would import late
    from edge_runtime.deploy.runner import Runner

    return lambda path: Runner.open(path)._backend.predict  # verified first, as on a device


def onnx_runtime() -> Load:
    import onnxruntime as ort

    def load(path: Path) -> Predict:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: session.run(None, {name: x})[0]

    return load


def litert() -> Load:
    from ai_edge_litert.interpreter import Interpreter

    return lambda path: _interpreted(Interpreter, path)


def tflite_runtime() -> Load:
    from tflite_runtime.interpreter import Interpreter

    return lambda path: _interpreted(Interpreter, path)


def _interpreted(interpreter: Any, path: Path) -> Predict:
    """set_tensor, invoke, get_tensor. Float inputs and outputs of int8 files are converted outside what is timed."""
    model = interpreter(model_path=str(path), num_threads=1)
    model.allocate_tensors()
    given, made = model.get_input_details()[0], model.get_output_details()[0]
    x_at, y_at = given["index"], made["index"]

    def predict(x: Any) -> Any:
        model.set_tensor(x_at, x)
        model.invoke()
        return model.get_tensor(y_at)

    predict.given, predict.made = given, made  # type: ignore[attr-defined]
    return predict


def torch() -> Load:
    import torch

    torch.set_num_threads(1)

    def load(path: Path) -> Predict:
        module = torch.load(path, weights_only=False).eval()  # written by this benchmark's own parent

        def predict(x: Any) -> Any:
            with torch.inference_mode():
                return module(torch.from_numpy(x)).numpy()

        return predict

    return load


RUNTIMES: dict[str, Callable[[], Load]] = {
    "engine": engine, "ort": onnx_runtime, "litert": litert, "tflite": tflite_runtime, "torch": torch,
}  # fmt: skip


def main(runtime: str, file: str, inputs: str) -> None:
    x = np.load(inputs)
    load = RUNTIMES[runtime]()
    start = time.process_time()
    predict = load(Path(file))
    loaded = time.process_time() - start
    given = quantised(x, getattr(predict, "given", None))
    output = real(predict(given), getattr(predict, "made", None))
    about = {"load_ms": 1e3 * loaded, "rss_mb": rss_bytes() / 1e6, "output": np.ravel(output).tolist()}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        print(microseconds(predict, given, float(line)), flush=True)


def microseconds(predict: Predict, x: Any, cpu_s: float) -> float:
    calls, count = 0, 8
    start = time.process_time()
    while (taken := time.process_time() - start) < cpu_s:
        for _ in range(count):
            predict(x)
        calls += count
        count = min(2 * count, 1024)
    return 1e6 * taken / calls


def quantised(x: Any, about: Any) -> Any:
    """`x` as an int8 input takes it."""
    if about is None or about["dtype"] == x.dtype:
        return x
    scale, zero = about["quantization"]
    kind = np.iinfo(about["dtype"])
    return np.clip(np.rint(x / scale) + zero, kind.min, kind.max).astype(about["dtype"])


def real(y: Any, about: Any) -> Any:
    if about is None or y.dtype == np.float32:
        return y
    scale, zero = about["quantization"]
    return (y.astype(np.float32) - zero) * scale


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(*sys.argv[1:])
