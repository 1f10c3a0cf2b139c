"""The models against known answers: number of parameters, and the loss of a first step from a fixed seed.

The losses were computed once with torch 2.13.0 from independent definitions of the same architectures.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from edge_runtime import plugins
from edge_runtime.train.config import MODELS
from simulations import models

IMAGE, TOKENS = (3, 32, 32), (64,)
KNOWN = {
    "lenet": (models.LeNet, (1, 28, 28), 61_706, (2.275, 2.347, 2.303)),
    "resnet8": (models.ResNet8, IMAGE, 77_850, (2.515, 2.455, 2.309)),
    "mobilenet_v2_small": (models.MobileNetV2Small, IMAGE, 103_418, (2.517, 2.213, 2.346)),
    "ds_cnn": (models.DSCNN, (1, 49, 10), 23_180, (2.441, 2.559, 2.433)),
    "gru": (lambda: models.CharGRU(80, 64, 64), TOKENS, 35_280, (4.429, 4.411, 4.390)),
    "transformer": (lambda: models.CharTransformer(80), TOKENS, 114_512, (4.612, 4.566, 4.555)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_and_first_losses(name):
    make, shape, parameters, losses = KNOWN[name]
    for batch, expected in zip((1, 8, 32), losses, strict=True):
        torch.manual_seed(0)
        model = make()
        assert sum(p.numel() for p in model.parameters()) == parameters
        generator = torch.Generator().manual_seed(0)
        if shape is TOKENS:
            x = torch.randint(0, 80, (batch, 64), generator=generator)
            y = torch.randint(0, 80, (batch, 64), generator=generator)
        else:
            x = torch.randn(batch, *shape, generator=generator)
            y = torch.randint(0, 10, (batch,), generator=generator)
        logits = model.train()(x)
        loss = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))
        assert loss.item() == pytest.approx(expected, abs=6e-4)


def test_every_registered_model_builds_and_runs():
    inputs = {
        "char_gru": torch.zeros(2, 80, dtype=torch.int64),
        "char_transformer": torch.zeros(2, 64, dtype=torch.int64),
        "digits_cnn": torch.zeros(2, 1, 8, 8),
        "ds_cnn": torch.zeros(2, 1, 49, 10),
        "lenet": torch.zeros(2, 1, 28, 28),
        "mlp": torch.zeros(2, 1, 28, 28),
        "mobilenet_v2_small": torch.zeros(2, *IMAGE),
        "resnet8": torch.zeros(2, *IMAGE),
        "watch_cnn": torch.zeros(2, 6, 1, 100),
    }
    assert inputs.keys() <= set(plugins.names(MODELS))
    for name, x in inputs.items():
        assert torch.isfinite(plugins.load(MODELS, name)()(x)).all()
