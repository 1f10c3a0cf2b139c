"""Three small `.hedgerow` files, for tests that must run where there is no PyTorch.

`python tests/golden/tiny_models.py` writes them again; a test says when that is due. Weights and calibration inputs
follow from a formula, so equal sources make equal files on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def make() -> dict[str, bytes]:
    """The contents of each file, by name; needs PyTorch."""
    import torch
    from torch import nn

    class Image(nn.Module):
        """Every integer op: convolutions dense and depthwise, both pools, sums, products, tables, moves."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.depthwise = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.gate, self.out = nn.Conv2d(4, 4, 1), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem(x))
            x = torch.relu(x + self.depthwise(x))
            x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
            x = torch.max_pool2d(x, 2).transpose(2, 3)
            x = torch.cat([nn.functional.avg_pool2d(x, 2), torch.tanh(x[:, :, 1:, :1])], 1)
            return self.out(x.flatten(1))

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
            self.gru, self.out = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.embedding(x))
            x = x + nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
            return self.out(self.gru(x)[0])

    images = pattern((6, 1, 4, 4))
    tokens = np.arange(18).reshape(6, 3) * 7 % 5
    return {
        "tiny_image.hedgerow": written(Image(), images, bits=8),
        "tiny_image_4.hedgerow": written(Image(), images, bits=4, activations=False),
        "tiny_tokens.hedgerow": written(Tokens(), tokens, bits=8),
    }


def pattern(shape: tuple[int, ...]) -> Any:
    return ((np.arange(np.prod(shape)) * 5 % 11 - 5) / 8.0).reshape(shape).astype(np.float32)


def written(module: Any, x: Any, *, bits: int, activations: bool = True) -> bytes:
    import torch

    from edge_runtime.deploy.formats.engine import write_engine
    from edge_runtime.deploy.graph.calibrate import calibrate
    from edge_runtime.deploy.graph.captured import captured_model
    from edge_runtime.deploy.graph.fold import fold
    from edge_runtime.deploy.graph.quantise import quantise

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(pattern(tuple(parameter.shape))))
    model = fold(captured_model(module, x))
    return write_engine(quantise(model, calibrate(model, [x]), weight_bits=bits, activations=activations))


if __name__ == "__main__":
    for name, content in make().items():
        (HERE / name).write_bytes(content)
        print(f"{name}: {len(content)} bytes")
