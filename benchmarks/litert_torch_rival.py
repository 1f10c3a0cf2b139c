"""litert-torch and ai-edge-quantizer on one of our models, in the environment of `make rivals-litert-torch`.

    litert_torch_rival.py MODEL FOLDER      FOLDER: weights.npz, calibration.npy in; fp32.tflite, int8.tflite out

Prints {"fp32_s": ..., "int8_s": ...}, or "int8_error". The recipe is the quantiser's own for full INT8. Only
`bench_export.py` starts this.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the converters print
    name, folder = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(run(name, folder)), file=answers, flush=True)


def run(name: str, folder: Path) -> dict[str, Any]:
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    from simulations import models

    torch.set_num_threads(1)
    module = getattr(models, name)()
    with np.load(folder / "weights.npz") as kept:
        module.load_state_dict({key: torch.from_numpy(kept[key]) for key in kept.files})
    inputs = np.load(folder / "calibration.npy")
    fp32, int8 = (str(folder / f"{kind}.tflite") for kind in ("fp32", "int8"))
    began = time.process_time()
    litert_torch.convert(module.eval(), (torch.from_numpy(inputs[:1]),)).export(fp32)
    found: dict[str, Any] = {"fp32_s": time.process_time() - began}

    began = time.process_time()
    written = Interpreter(model_path=fp32)
    [(signature, ends)] = written.get_signature_list().items()
    inputs = inputs.astype(written.get_input_details()[0]["dtype"])  # tokens have become int32
    rows = [{ends["inputs"][0]: inputs[i : i + 1]} for i in range(len(inputs))]
    try:
        converter = quantizer.Quantizer(fp32)
        converter.load_quantization_recipe(recipe.static_wi8_ai8())
        converter.quantize(converter.calibrate({signature: rows})).export_model(int8, overwrite=True)
    except Exception as error:  # it raises many types for models that it cannot quantise
        return {**found, "int8_error": str(error).splitlines()[0]}
    return {**found, "int8_s": time.process_time() - began}


if __name__ == "__main__":
    main()
