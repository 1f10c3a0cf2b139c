"""What `write_onnx` writes says the same as PyTorch, whole models and each row of the table, and as torch.onnx does."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from zoo import IMAGES, TOKENS, answer, example

from edge_runtime.deploy.formats.onnx import write_onnx
from edge_runtime.deploy.formats.onnx.rows import NEEDS, ROWS
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.float_model import FloatModel, checked
from edge_runtime.deploy.runner import Runner
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.builder import Builder

ZOO = (*IMAGES, *TOKENS)
ROWS_TRIED = 3


def moved(name: str) -> tuple[nn.Module, NDArray[np.generic]]:
    return example(name).module, example(name).x[:ROWS_TRIED]


def captured(name: str) -> FloatModel:
    return example(name).model


def run(content: bytes, x: NDArray[np.generic]) -> NDArray[np.float32]:
    return Runner.of(content, ".onnx").predict(x)


def same(
    module: nn.Module, x: NDArray[np.generic], atol: float = 1e-4, model: FloatModel | None = None
) -> onnx.ModelProto:
    """Our file of `module` answers as PyTorch does, for any batch, for one row, and for a fixed batch."""
    model = model or captured_model(module.eval(), x)
    content = write_onnx(model)
    want = answer(module, x)
    for rows in {1, len(x)}:
        np.testing.assert_allclose(run(content, x[:rows]), answer(module, x[:rows]), rtol=1e-4, atol=atol)
    np.testing.assert_allclose(run(write_onnx(model, batch=len(x)), x), want, rtol=1e-4, atol=atol)
    return onnx.load_from_string(content)


# Whole models.


@pytest.mark.parametrize("name", ZOO)
def test_every_model_answers_as_pytorch_does(name: str) -> None:
    same(*moved(name), model=captured(name))


@pytest.mark.parametrize("name", ZOO)
def test_a_folded_model_says_the_same_and_has_no_batch_norm(name: str) -> None:
    module, x = moved(name)
    content = write_onnx(example(name).folded)
    np.testing.assert_allclose(run(content, x), answer(module, x), rtol=1e-4, atol=1e-4)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load_from_string(content).graph.node}


@pytest.mark.parametrize("name", ["digits_cnn", "char_gru", "char_transformer"])
def test_torch_onnx_writes_a_model_that_answers_as_ours(name: str) -> None:
    module, x = moved(name)
    if name == "char_gru":
        x = x[:, :5]  # it writes each step anew
    theirs = torch_onnx(module, x)
    ours = run(write_onnx(captured_model(module, x)), x)
    np.testing.assert_allclose(run(theirs, x), ours, rtol=1e-4, atol=1e-4)


def torch_onnx(module: nn.Module, x: NDArray[np.generic]) -> bytes:
    with quiet():
        program = torch.onnx.export(
            module,
            (torch.from_numpy(x),),
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 20)},),
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch.onnx's remarks on packages that it misses."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# The file.


@pytest.mark.parametrize("name", ZOO)
def test_a_file_is_checked_small_and_without_what_a_runtime_does_not_need(name: str, tmp_path: Path) -> None:
    model = example(name).folded
    content = write_onnx(model)
    proto = onnx.load_from_string(content)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.ir_version <= 10
    assert not proto.graph.value_info
    assert not proto.metadata_props
    assert len({node.name for node in proto.graph.node}) == len(proto.graph.node), "ONNX Runtime 1.20 asks for that"
    assert not any(node.doc_string for node in proto.graph.node)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in proto.graph.initializer)
    assert all(tensor.HasField("raw_data") for tensor in proto.graph.initializer)
    assert len(content) < 4 * model.parameters + 60 * len(proto.graph.node) + 4000
    (tmp_path / "model.onnx").write_bytes(content)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("name", ["digits_cnn", "char_gru"])
def test_equal_models_give_equal_bytes(name: str) -> None:
    again = captured_model(*moved(name))
    assert write_onnx(captured(name)) == write_onnx(again)


@pytest.mark.parametrize(("batch", "dim"), [(0, "batch"), (1, 1), (5, 5)])
def test_the_batch_stands_in_input_and_output(batch: int, dim: int | str) -> None:
    graph = onnx.load_from_string(write_onnx(captured("digits_cnn"), batch=batch)).graph
    for value in (graph.input[0], graph.output[0]):
        first = value.type.tensor_type.shape.dim[0]
        assert (first.dim_param or first.dim_value) == dim
    assert [one.name for one in (*graph.input, *graph.output)] == ["input", "output"]


@pytest.mark.parametrize(("name", "opset"), [("lenet", 13), ("mobilenet_v2_small", 13), ("char_transformer", 20)])
def test_the_opset_is_as_low_as_the_ops_allow(name: str, opset: int) -> None:
    proto = onnx.load_from_string(write_onnx(captured(name)))
    assert [one.version for one in proto.opset_import] == [opset]


def test_rows_say_from_which_opset_on_their_operators_are() -> None:
    assert set(NEEDS) <= set(ROWS)


def test_equal_constants_are_stored_once() -> None:
    graph = onnx.load_from_string(write_onnx(captured("char_transformer"))).graph
    stored = [(one.data_type, tuple(one.dims), one.raw_data) for one in graph.initializer]
    assert len(stored) == len(set(stored))


# Rows, one by one.


class Does(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


ELEMENTWISE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "gelu": functional.gelu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "scale": lambda x: 3 * x - 0.5,
    "by": lambda x: 2 * x,
    "plus": lambda x: x + 1,
    "add": lambda x: x + x.mean(1, keepdim=True),
    "mul": lambda x: x * x.sum(2, keepdim=True),
}
SHAPES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: x.flatten(1),
    "reshape": lambda x: x.reshape(len(x), 2, -1),
    "joined with the batch": lambda x: x.reshape(-1, 5).sigmoid().reshape(len(x), -1),
    "transpose": lambda x: x.transpose(1, 2).relu(),
    "the batch elsewhere": lambda x: x.permute(2, 1, 0).softmax(0).permute(2, 0, 1),
    "slice": lambda x: x[:, 1:3].relu(),
    "cat": lambda x: torch.cat([x, x.relu(), x[:, :, :2]], 2),
    "expand": lambda x: x[:, :, :1].expand(-1, -1, 7).relu(),
    "mean": lambda x: x.mean(1),
    "mean of the last": lambda x: x.mean(-1, keepdim=True),
    "sum": lambda x: x.sum((1, 2)),
    "softmax": lambda x: x.softmax(1),
    "gelu and mean": lambda x: functional.gelu(x).mean(1),  # ReduceMean of an opset where its axes are an input
    "batch of zeros": lambda x: torch.cat([x, torch.zeros(len(x), 2, 5)], 1),
    "nothing": lambda x: x[:, 0:4],
}


@pytest.mark.parametrize("name", [*ELEMENTWISE, *SHAPES])
def test_elementwise_ops_and_shapes(name: str) -> None:
    torch.manual_seed(1)
    same(Does((ELEMENTWISE | SHAPES)[name]), torch.randn(3, 4, 5).numpy(), 1e-6)


PLANES: Mapping[str, Callable[[], nn.Module]] = {
    "conv without bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, (3, 1), (2, 1), (1, 0), groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "max pool": lambda: nn.MaxPool2d(3, 2, 1),
    "average pool": lambda: nn.AvgPool2d((2, 3), (1, 2)),
    "global mean": lambda: Does(lambda x: x.mean((2, 3))),
    "global mean, kept": lambda: Does(lambda x: x.mean((2, 3), keepdim=True)),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "layer norm of planes": lambda: nn.LayerNorm((9, 8)),
    "layer norm without parameters": lambda: nn.LayerNorm(8, elementwise_affine=False),
    "linear over the last dim": lambda: nn.Linear(8, 3),
    "linear without bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(288, 3, bias=False)),
}


@pytest.mark.parametrize("name", PLANES)
def test_layers_on_planes(name: str) -> None:
    torch.manual_seed(2)
    module = PLANES[name]()
    with torch.no_grad():
        for one in (*module.parameters(), *module.buffers()):
            if one.is_floating_point():
                one.copy_(torch.rand(one.shape) + 0.1)
    same(module, torch.randn(3, 4, 9, 8).numpy(), 1e-5)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    groups=st.sampled_from([1, 2, 4]),
    batch=st.sampled_from([0, 2]),
)
def test_any_convolution(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
    batch: int,
) -> None:
    rng = np.random.default_rng(3)
    w = rng.normal(size=(8, 4 // groups, *kernel)).astype(np.float32)
    builder = Builder(batch=997)
    names = builder.input("x", (997, 4, *size)), builder.state("w", w.shape)
    y = builder.emit("conv2d", *names, stride=stride, padding=padding, groups=groups)
    x = rng.normal(size=(2, 4, *size)).astype(np.float32)
    ours = run(write_onnx(checked(FloatModel(builder.finish([y]), {"w": w}, 997)), batch=batch), x)
    want = functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), None, stride, padding, 1, groups)
    np.testing.assert_allclose(ours, want.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "attributes", "does"),
    [
        ("exp", {}, np.exp),
        ("clip", {"low": -0.5, "high": 0.25}, lambda x: np.clip(x, -0.5, 0.25)),
        ("pad", {"dim": 1, "start": 2, "size": 9}, lambda x: np.pad(x, ((0, 0), (2, 1)))),
        ("detach", {}, lambda x: x),
    ],
)
def test_ops_that_pytorch_code_does_not_become(
    op: str, attributes: dict[str, object], does: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> None:
    x = np.linspace(-5, 5, 12, dtype=np.float32).reshape(2, 6)
    for batch in (0, 2):
        np.testing.assert_allclose(run(write_onnx(built(op, **attributes), batch=batch), x), does(x), rtol=1e-5)


class Attends(nn.Module):
    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        heads = [layer(x).reshape(len(x), -1, 2, 3).transpose(1, 2) for layer in (self.q, self.k, self.v)]
        return functional.scaled_dot_product_attention(*heads, is_causal=self.causal).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool) -> None:
    torch.manual_seed(4)
    same(Attends(causal=causal), torch.randn(3, 7, 6).numpy(), 1e-5)


class Recurs(nn.Module):
    """A recurrent layer, of which the outputs, the final state, or a start that is not zero is used."""

    def __init__(self, layer: nn.RNNBase, use: str) -> None:
        super().__init__()
        self.layer, self.use = layer, use

    def forward(self, x: Tensor) -> Tensor:
        if self.use == "start":
            width = self.layer.hidden_size
            start = x[:, 0, :1].expand(-1, width)[None].contiguous()
            return self.layer(x, (start, start * 0.5) if isinstance(self.layer, nn.LSTM) else start)[0]  # type: ignore[no-any-return]
        y, last = self.layer(x)
        if self.use == "outputs":
            return y  # type: ignore[no-any-return]
        return (last[1] if isinstance(self.layer, nn.LSTM) else last)[-1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("use", ["outputs", "final", "start"])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize(("layers", "bias", "first"), [(1, True, True), (2, False, True), (1, True, False)])
def test_recurrent_layers(kind: type[nn.RNNBase], use: str, layers: int, bias: bool, first: bool) -> None:
    if layers == 2 and use == "start":
        pytest.skip("the start is of one layer")
    torch.manual_seed(5)
    x = torch.randn(3, 4, 5)
    module = Recurs(kind(5, 6, layers, bias=bias, batch_first=True), use)
    if not first:
        module = nn.Sequential(Turned(), Recurs(kind(5, 6), "outputs"), Turned())
    proto = same(module, x.numpy(), 1e-5)
    (node, *_) = [node for node in proto.graph.node if node.op_type in ("GRU", "LSTM")]
    assert (len(node.input) > 5) == (use == "start" and first), "a start of zeros needs no input"


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)


# What cannot be written.


def built(op: str, rows: int = 997, **attributes: object) -> FloatModel:
    builder = Builder(batch=rows)
    x = builder.input("x", (rows, 6))
    builder.source = "model.py:7"
    return checked(FloatModel(builder.finish([builder.emit(op, x, **attributes)]), {}, rows))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: built("slice", dim=0, start=0, stop=1), "slice of the batch"),
        (lambda: built("pad", dim=0, start=0, size=2 * 997), "pad of the batch"),
        (lambda: built("square_sum"), "square_sum"),
    ],
)
def test_what_onnx_cannot_hold_is_refused_with_its_op_and_line(model: Callable[[], FloatModel], said: str) -> None:
    with pytest.raises(UnsupportedOpError, match=said) as caught:
        write_onnx(model())
    assert "model.py:7" in str(caught.value)
    assert "\n" not in str(caught.value)
