"""Two small Programs as files, for tests that must run where there is no PyTorch.

`python tests/golden/tiny.py` writes them again; a test says when that is due. Weights follow from a formula, so equal
sources make equal files on every machine.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def make() -> dict[str, bytes]:
    """The contents of each file, by name; needs PyTorch."""
    import torch
    from torch import nn

    import edge_runtime as er

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
            self.gru, self.out, self.mood = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 5), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.norm(self.embedding(x))
            x = x + nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
            x = self.gru(x)[0]
            return self.out(x), self.mood(x)

    images = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.25), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    tokens = Tokens()
    for module in (images, tokens):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(((torch.arange(parameter.numel()) * 5 % 11 - 5) / 8.0).reshape(parameter.shape))
    for_images = er.build(
        images,
        torch.zeros(1, 1, 4, 4),
        loss=er.CrossEntropy(label_smoothing=0.125, class_weights=(0.5, 1.0, 2.0)),
        optimizer=er.SGD(lr=0.125, momentum=0.5),
        batch_size=[2, 4],
        clip_norm=1.0,
    )
    for_tokens = er.build(
        tokens,
        torch.zeros(1, 3, dtype=torch.int64),
        loss=er.MultiTask((er.CrossEntropy(), er.MSE()), learned=True),
        optimizer=er.Adam(lr=0.125),
        batch_size=3,
        micro_batch=2,
        proximal_mu=0.25,
        correction=True,
    )
    return {"tiny_images.program": for_images.to_bytes(), "tiny_tokens.program": for_tokens.to_bytes()}


if __name__ == "__main__":
    for name, content in make().items():
        (HERE / name).write_bytes(content)
        print(f"{name}: {len(content)} bytes")
