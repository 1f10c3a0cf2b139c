"""Our files in tflite-runtime 2.14, the last one, which old devices have; `make rivals-tflite` installs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_runtime.deploy.formats.tflite import write_tflite
from edge_runtime.deploy.graph.calibrate import calibrate
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.deploy.graph.quantise import quantise
from edge_runtime.deploy.graph.rounding import predict_rounded
from simulations import models

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-tflite/bin/python"
SHAPES = {"lenet": (1, 28, 28), "resnet8": (3, 32, 32), "mobilenet_v2_small": (3, 32, 32), "ds_cnn": (1, 49, 10)}
TOKENS = {"char_gru": (80,), "char_transformer": (64,)}

# The backend itself, in the other environment: it needs nothing of ours that is built.
SCRIPT = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from edge_runtime.deploy.run.litert import LiteRtBackend
assert np.__version__ < "2"
backend = LiteRtBackend(open(sys.argv[2], "rb").read())
assert "tflite_runtime" in sys.modules and "ai_edge_litert" not in sys.modules
np.save(sys.argv[4], backend.predict(np.load(sys.argv[3])))
"""


def run_there(data, x, folder):
    (folder / "model.tflite").write_bytes(data)
    np.save(folder / "x.npy", x)
    arguments = [ROOT, folder / "model.tflite", folder / "x.npy", folder / "y.npy"]
    subprocess.run([PYTHON, "-c", SCRIPT, *map(str, arguments)], check=True, cwd=folder)
    return np.load(folder / "y.npy")


@pytest.mark.skipif(not PYTHON.exists(), reason="make rivals-tflite makes the environment that this runs in")
@pytest.mark.parametrize("name", [*SHAPES, *TOKENS])
def test_the_old_runtime_gives_the_same(name, tmp_path):
    torch.manual_seed(0)
    module = getattr(models, name)().eval()
    x = torch.randint(0, 80, (4, *TOKENS[name])) if name in TOKENS else torch.randn(4, *SHAPES[name])
    model, x = fold(captured_model(module, x)), x.numpy()
    got = run_there(write_tflite(model, batch=0), x, tmp_path)
    np.testing.assert_allclose(got, predict(model, x), atol=1e-5)

    quantised = quantise(model, calibrate(model, [x]))
    got = run_there(write_tflite(quantised, batch=0), x, tmp_path)
    step = float(quantised.quants[model.graph.outputs[0]].scale[0])
    # Its kernels round otherwise: one step in images, up to three behind a transformer's two blocks.
    assert abs(got - predict_rounded(quantised, x)).max() <= (3.01 if name in TOKENS else 1.01) * step
