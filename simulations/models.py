"""The models a scenario can name, in PyTorch. Each function builds a new module with PyTorch's own initialisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class LeNet(nn.Module):
    """61,706 parameters for (B, 1, 28, 28); after LeCun et al. 1998, with ReLU and max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5, padding=2)
        self.c2 = nn.Conv2d(6, 16, 5)
        self.f1 = nn.Linear(400, 120)
        self.f2 = nn.Linear(120, 84)
        self.f3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.c1(x)), 2)
        x = torch.max_pool2d(torch.relu(self.c2(x)), 2).flatten(1)
        x = torch.relu(self.f2(torch.relu(self.f1(x))))
        return self.f3(x)  # type: ignore[no-any-return]  # torch modules are untyped callables


class DigitsCNN(nn.Module):
    """5,928 parameters for (B, 1, 8, 8): small enough for tests."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.hidden = nn.Linear(128, 42)
        self.out = nn.Linear(42, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.conv(x)), 2).flatten(1)
        return self.out(torch.relu(self.hidden(x)))  # type: ignore[no-any-return]  # torch modules are untyped callables


class WatchCNN(nn.Module):
    """Two convolutions over time for six-axis windows (B, 6, 1, 100); 7 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(6, 32, (1, 5), padding=(0, 2))
        self.c2 = nn.Conv2d(32, 64, (1, 5), padding=(0, 2))
        self.out = nn.Linear(64, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.c1(x)), (1, 2))
        x = torch.relu(self.c2(x)).mean((2, 3))
        return self.out(x)  # type: ignore[no-any-return]  # torch modules are untyped callables


class CharGRU(nn.Module):
    """Next-character logits (B, T, vocabulary) for tokens (B, T)."""

    def __init__(self, vocabulary: int = 81, width: int = 16, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, hidden, batch_first=True)
        self.out = nn.Linear(hidden, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(self.embedding(x))[0])  # type: ignore[no-any-return]  # torch modules are untyped callables


class ResidualBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1 x)))) + shortcut x); where the size changes, the shortcut is a bare 1x1 conv."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet8(nn.Module):
    """77,850 parameters for (B, 3, 32, 32); the residual network of MLPerf Tiny's size (He et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2))
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.bn(self.conv(x))))
        return self.out(x.mean((2, 3)))  # type: ignore[no-any-return]  # torch modules are untyped callables


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Expand by 1x1, depthwise 3x3, project by 1x1; the input is added where stride and width allow (Sandler 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        widen = [] if expand == 1 else [*_conv_bn(inputs, hidden, 1), nn.ReLU6()]
        depthwise = [*_conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        self.path = nn.Sequential(*widen, *depthwise, *_conv_bn(hidden, outputs, 1))
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.path(x)
        return x + y if self.adds_input else y  # type: ignore[no-any-return]  # torch modules are untyped callables


class MobileNetV2Small(nn.Module):
    """103,418 parameters for (B, 3, 32, 32): a stem of 16, eight inverted residuals, a head of 160."""

    def __init__(self) -> None:
        super().__init__()
        stem = [*_conv_bn(3, 16, 3), nn.ReLU6()]
        shapes = [(16, 8, 1, 1), (8, 16, 2, 6), (16, 16, 1, 6), (16, 24, 2, 6), (24, 24, 1, 6), (24, 32, 1, 6)]
        blocks = [InvertedResidual(*shape) for shape in [*shapes, (32, 56, 2, 6), (56, 56, 1, 6)]]
        self.features = nn.Sequential(*stem, *blocks, *_conv_bn(56, 160, 1), nn.ReLU6())
        self.out = nn.Linear(160, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]  # torch modules are untyped callables


class DSCNN(nn.Module):
    """23,180 parameters for keywords (B, 1, 49, 10), 49 frames of 10 cepstra; 12 classes.

    A convolution and four depthwise separable ones (Zhang et al. 2017) at MLPerf Tiny's size, without its dropout.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        stem = [nn.Conv2d(1, width, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        pairs = [
            layer
            for _ in range(4)
            for conv in (_conv_bn(width, width, 3, groups=width), _conv_bn(width, width, 1))
            for layer in (*conv, nn.ReLU())
        ]
        self.features = nn.Sequential(*stem, *pairs)
        self.out = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]  # torch modules are untyped callables


class TransformerBlock(nn.Module):
    """A pre-norm block: x += p(attention(qkv(n1 x))), x += f2(gelu(f1(n2 x)))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.p = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.f1, self.f2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.n1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.p(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.f2(functional.gelu(self.f1(self.n2(x))))  # type: ignore[no-any-return]  # untyped callables


class CharTransformer(nn.Module):
    """Next-character logits (B, 64, vocabulary) for tokens (B, 64); 114,512 parameters at a vocabulary of 80."""

    def __init__(self, vocabulary: int = 81, width: int = 64, heads: int = 2, length: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.Sequential(TransformerBlock(width, heads), TransformerBlock(width, heads))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embedding(x) + self.positions[: x.shape[1]])
        return self.out(self.norm(x))  # type: ignore[no-any-return]  # torch modules are untyped callables


def lenet() -> nn.Module:
    return LeNet()


def digits_cnn() -> nn.Module:
    return DigitsCNN()


def watch_cnn() -> nn.Module:
    return WatchCNN()


def char_gru() -> nn.Module:
    return CharGRU()


def char_transformer() -> nn.Module:
    return CharTransformer()


def ds_cnn() -> nn.Module:
    return DSCNN()


def resnet8() -> nn.Module:
    return ResNet8()


def mobilenet_v2_small() -> nn.Module:
    return MobileNetV2Small()


def mlp() -> nn.Module:
    """A 784-64-10 perceptron, 50,890 parameters, for (B, 1, 28, 28)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def softmax() -> nn.Module:
    """Softmax regression, 7,850 parameters that start at zero, for (B, 1, 28, 28): little for noise to act on."""
    linear = nn.Linear(784, 10)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Flatten(), linear)
