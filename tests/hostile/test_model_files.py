"""Model files from anywhere, before a runtime opens them.

The invariant: `check_model` either returns, and then every value has a known, bounded size, every byte of every
constant is in the file and every operator is on the list; or it raises ArtefactError. It raises nothing else, reads
nothing outside the bytes it was given, and takes time and memory in proportion to them.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import flatbuffers
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as tfl
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.deploy.trust.allow_list import Sizes, check_model
from edge_runtime.deploy.trust.onnx_model import read_onnx
from edge_runtime.deploy.trust.onnx_shapes import shapes_of
from edge_runtime.deploy.trust.tensors import read_tensors, write_tensors
from edge_runtime.errors import ArtefactError

LARGEST = Sizes().max_elements


def refused(content: bytes, suffix: str) -> bool:
    """Whether the file is refused; anything else than ArtefactError fails the test."""
    try:
        check_model(content, suffix)
    except ArtefactError:
        return True
    return False


# ONNX.


def model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    shape: tuple[int | str, ...] = ("n", 1, 8, 8),
    opset: int = 17,
) -> onnx.ModelProto:
    """A graph from x to y."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def convolution() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(4, 1, 3, 3)).astype(np.float32),
        "flat": np.array([0, -1]),
        "v": rng.normal(size=(3, 64)).astype(np.float32),
        "scale": np.float32([0.1]).reshape(()),
        "zero": np.zeros((), np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Conv", ["d", "w"], ["c"], pads=[1, 1, 1, 1], strides=[1, 1]),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),
    ]
    return model(nodes, constants)


ONNX = convolution().SerializeToString()


def test_an_ordinary_model_passes_and_its_sizes_are_those_that_onnx_infers() -> None:
    check_model(ONNX, ".onnx")
    ours = shapes_of(read_onnx(ONNX), LARGEST)
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(ONNX), data_prop=True).graph.value_info
    assert {value.name for value in inferred} >= {"c", "p", "f"}
    for value in inferred:
        theirs = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)  # 1 for the batch
        assert ours[value.name] == theirs, value.name


def node(op: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), ["y"], **attributes)


SIZES = {"s": np.array([40_000, 40_000]), "many": np.array([1, 1, 4_000, 4_000])}
HUGE_PADS = np.array([0, 0, 0, 0, 0, 0, 10_000, 10_000])
COLUMNS = {"a": np.zeros((10_000, 1), np.float32), "b": np.zeros((1, 10_000), np.float32)}
STATES = {"w": np.zeros((1, 3, 1), np.float32), "r": np.zeros((1, 3, 1), np.float32)}
CHAIN = [helper.make_node("Add", [f"x{i}", f"x{i}"], [f"x{i + 1}"]) for i in range(40)]


@pytest.mark.parametrize(
    "made",
    [
        model([node("ConstantOfShape", "s")], SIZES),
        model([node("Expand", "x", "s")], SIZES),
        model([node("Tile", "x", "many")], SIZES),
        model([node("Pad", "x", "p")], {"p": HUGE_PADS}),
        model([node("Add", "a", "b")], COLUMNS),
        model([node("Where", "x", "a", "b")], COLUMNS, shape=(1,)),
        model([node("MatMul", "a", "b")], COLUMNS),
        model([node("Gather", "x", "i", axis=0)], {"i": np.zeros((1_000, 1_100), np.int64)}, shape=(1, 64)),
        model([node("Relu", "x")], shape=(1, 1 << 31, 1 << 31)),
        model([node("Relu", "x")], shape=(1, -5)),
        model([node("Conv", "x", "w", pads=[30_000] * 4)], {"w": np.zeros((1, 1, 1, 1), np.float32)}),
        model([node("AveragePool", "x", kernel_shape=[1, 1], pads=[30_000] * 4)]),
        model([node("Concat", *["a"] * 9_000, axis=0)], {"a": np.zeros((10_000,), np.float32)}),
        model(
            [helper.make_node("Mul", ["s", "s"], ["t"]), helper.make_node("ConstantOfShape", ["t"], ["y"])],
            {"s": np.array([300, 300])},
        ),
        model([helper.make_node("Expand", ["x", "s"], ["x0"]), *CHAIN], {"s": np.array([1, 1, 6_000, 8_000])}),
        model([node("GRU", "x", "w", "r", hidden_size=1 << 40)], STATES, shape=(4, 1, 1)),
    ],
    ids=[
        "ConstantOfShape", "Expand", "Tile", "Pad", "Add", "Where", "MatMul", "Gather", "input", "negative", "Conv",
        "AveragePool", "Concat", "computed size", "many large values", "GRU",
    ],
)  # fmt: skip
def test_a_small_file_with_large_values_is_refused(made: onnx.ModelProto) -> None:
    made.graph.output[0].name = made.graph.node[-1].output[0]
    with pytest.raises(ArtefactError, match=r"elements|do not go together|hidden_size|negative|gives"):
        check_model(made.SerializeToString(), ".onnx")


def test_a_bomb_of_hundred_bytes() -> None:
    """It passes onnx.checker, and its runtime asks for 6.4 GB."""
    made = model([node("ConstantOfShape", "s")], SIZES, shape=(40_000, 40_000))
    del made.graph.input[:]
    onnx.checker.check_model(made, full_check=True)
    content = made.SerializeToString()
    assert len(content) < 160
    assert refused(content, ".onnx")


SQUARES = [helper.make_node("Mul", [f"s{i}", f"s{i}"], [f"s{i + 1}"]) for i in range(14)]
NONE, ONE = np.zeros(0, np.int64), np.ones(1, np.int64)


@pytest.mark.parametrize(
    ("nodes", "constants", "said"),
    [
        # Each doubles the digits: forty would be a number of terabytes.
        ([*SQUARES, node("Relu", "x")], {"s0": np.full(64, 3 << 60)}, "more than 64 bits"),
        ([node("Unsqueeze", "x", axes=[0] * 2_000)], {}, "more than 8 dims"),
        ([helper.make_node("Mul", ["e", "e"], ["f"]), node("Relu", "x")], {"e": NONE}, "Mul does not fit"),
        ([helper.make_node("Mul", ["e"], ["f"]), node("Relu", "x")], {"e": ONE}, "Mul does not fit"),
        ([helper.make_node("Identity", ["e"], []), node("Relu", "x")], {"e": ONE}, "Identity does not fit"),
    ],
    ids=["squares of squares", "a million dims", "nothing times nothing", "one factor", "no output"],
)
def test_numbers_that_become_sizes_stay_small(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], said: str
) -> None:
    with pytest.raises(ArtefactError, match=said):
        check_model(model(nodes, constants).SerializeToString(), ".onnx")


def sized_by_what_is_given() -> onnx.ModelProto:
    made = model([node("Expand", "x", "size")], shape=(1,))
    made.graph.input.append(helper.make_tensor_value_info("size", TensorProto.INT64, [2]))
    return made


def with_field(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    made = convolution()
    change(made)
    return made


def branch() -> onnx.AttributeProto:
    return helper.make_attribute("then_branch", convolution().graph)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (sized_by_what_is_given(), "depends on what it is given"),
        (model([node("NonZero", "x")]), "'NonZero' is not allowed"),
        (model([node("Loop", "x", body=convolution().graph)]), "field 6"),
        (with_field(lambda m: m.graph.node[0].attribute.append(branch())), "field 6"),
        (with_field(lambda m: m.functions.add(name="f")), "field 25"),
        (with_field(lambda m: m.training_info.add()), "field 20"),
        (with_field(lambda m: m.graph.sparse_initializer.add()), "field 15"),
        (with_field(lambda m: setattr(m.graph.node[0], "domain", "com.evil")), "com.evil"),
        (with_field(lambda m: m.opset_import.add(domain="com.microsoft", version=1)), "com.microsoft"),
        (with_field(lambda m: m.graph.initializer[0].dims.append(2)), "has not the contents"),
        (with_field(lambda m: m.graph.initializer[0].external_data.add(key="a", value="/x")), "outside the file"),
        (with_field(lambda m: setattr(m.graph.initializer[0], "data_location", 1)), "outside the file"),
        (with_field(lambda m: m.graph.node.extend([m.graph.node[0]])), "made twice"),
        (with_field(lambda m: m.graph.node.insert(0, m.graph.node[3])), "before it is made"),
        (with_field(lambda m: setattr(m.graph.output[0], "name", "nowhere")), "nothing makes the output"),
        (with_field(lambda m: m.ClearField("graph")), "has no graph"),
    ],
    ids=[
        "size from outside", "unknown operator", "loop", "branch", "function", "training", "sparse", "domain of a node",
        "domain of the model", "wrong contents", "external", "external without a place", "twice", "out of order",
        "no output", "no graph",
    ],
)  # fmt: skip
def test_what_no_model_here_needs_is_refused(made: onnx.ModelProto, said: str) -> None:
    with pytest.raises(ArtefactError, match=said):
        check_model(made.SerializeToString(), ".onnx")


def test_a_second_graph_does_not_hide_behind_the_first() -> None:
    """Parsers of Protocol Buffers join the two; what is checked must be what is run."""
    bomb = onnx.ModelProto(graph=model([node("ConstantOfShape", "s")], SIZES).graph).SerializeToString()
    with pytest.raises(ArtefactError, match="graph twice"):
        check_model(ONNX + bomb, ".onnx")


# TFLite.


class Builder:
    """A file through the schema's own object API: a linear layer, for tests to spoil."""

    def __init__(self) -> None:
        self.model = tfl.ModelT(version=3)
        weight = np.arange(12, dtype=np.float32).reshape(3, 4)
        self.model.buffers = [tfl.BufferT(), tfl.BufferT(data=weight.view(np.uint8).ravel())]
        self.model.operatorCodes = [self.code(9)]
        graph = tfl.SubGraphT(inputs=[0], outputs=[2])
        graph.tensors = [self.tensor((1, 4)), self.tensor((3, 4), buffer=1), self.tensor((1, 3))]
        graph.operators = [tfl.OperatorT(opcodeIndex=0, inputs=[0, 1, -1], outputs=[2])]
        graph.operators[0].builtinOptionsType = 8
        graph.operators[0].builtinOptions = tfl.FullyConnectedOptionsT()
        self.model.subgraphs = [graph]

    @property
    def graph(self) -> tfl.SubGraphT:
        return self.model.subgraphs[0]

    @staticmethod
    def code(number: int, **more: object) -> tfl.OperatorCodeT:
        return tfl.OperatorCodeT(deprecatedBuiltinCode=min(number, 127), builtinCode=number, version=1, **more)

    @staticmethod
    def tensor(shape: tuple[int, ...], buffer: int = 0, kind: int = 0, **more: object) -> tfl.TensorT:
        return tfl.TensorT(shape=list(shape), buffer=buffer, type=kind, **more)

    def constant(self, content: np.ndarray, kind: int) -> int:
        """The number of a new constant tensor."""
        self.model.buffers.append(tfl.BufferT(data=np.ascontiguousarray(content).view(np.uint8).ravel()))
        self.graph.tensors.append(self.tensor(content.shape, len(self.model.buffers) - 1, kind))
        return len(self.graph.tensors) - 1

    def operator(self, code: int, inputs: list[int], shape: tuple[int, ...]) -> None:
        """An operator more, that makes the output."""
        self.model.operatorCodes.append(self.code(code))
        self.graph.tensors.append(self.tensor(shape))
        place = len(self.graph.tensors) - 1
        index = len(self.model.operatorCodes) - 1
        self.graph.operators.append(tfl.OperatorT(opcodeIndex=index, inputs=inputs, outputs=[place]))
        self.graph.outputs = [place]

    def content(self) -> bytes:
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


TFLITE = Builder().content()


def test_an_ordinary_tflite_file_passes() -> None:
    check_model(TFLITE, ".tflite")


def spoiled(change: Callable[[Builder], object]) -> bytes:
    builder = Builder()
    change(builder)
    return builder.content()


def huge_pad(b: Builder) -> None:
    pads = b.constant(np.array([[0, 0], [0, 1 << 30]], np.int32), 2)
    b.operator(34, [2, pads], (1, 3 + (1 << 30)))


def lying_pad(b: Builder) -> None:
    b.operator(34, [2, b.constant(np.array([[0, 0], [0, 1 << 30]], np.int32), 2)], (1, 3))


def lying_product(b: Builder) -> None:
    """A column times a row, declared to be small."""
    column = b.constant(np.zeros((20_000, 1), np.float32), 0)
    b.operator(18, [column, b.constant(np.zeros((1, 20_000), np.float32), 0)], (1, 1))


def computed_pad(b: Builder) -> None:
    b.graph.tensors.append(b.tensor((2, 2), kind=2))
    b.graph.inputs = [0, 3]
    b.operator(34, [2, 3], (1, 3))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (spoiled(lambda b: setattr(b.graph.tensors[2], "shape", [1 << 30, 1 << 30])), "elements at most"),
        (spoiled(lambda b: setattr(b.graph.tensors[0], "shape", [1, -4])), "elements at most"),
        (spoiled(lambda b: setattr(b.graph.tensors[2], "shape", [2, 3])), "gives"),
        (spoiled(huge_pad), "elements at most"),
        (spoiled(lying_pad), "gives"),
        (spoiled(lying_product), "gives"),
        (spoiled(computed_pad), "depends on what it is given"),
        (spoiled(lambda b: setattr(b.model.operatorCodes[0], "customCode", "Flex")), "field 1"),
        (spoiled(lambda b: setattr(b.model, "operatorCodes", [b.code(32)])), "operator 32 is not allowed"),
        (spoiled(lambda b: setattr(b.model, "operatorCodes", [b.code(119)])), "operator 119 is not allowed"),
        (spoiled(lambda b: setattr(b.graph.operators[0], "customOptions", [1])), "field 5"),
        (spoiled(lambda b: setattr(b.graph.operators[0], "opcodeIndex", 7)), "of no code"),
        (spoiled(lambda b: setattr(b.graph.operators[0], "inputs", [0, 99, -1])), "before it is made"),
        (spoiled(lambda b: setattr(b.graph.operators[0], "outputs", [-1])), "is not there"),
        (spoiled(lambda b: setattr(b.graph.operators[0], "outputs", [1])), "made twice"),
        (spoiled(lambda b: setattr(b.graph.tensors[1], "buffer", 9)), "has no buffer"),
        (spoiled(lambda b: setattr(b.graph.tensors[1], "isVariable", True)), "is a variable"),
        (spoiled(lambda b: setattr(b.graph.tensors[1], "shape", [3, 5])), "has 48 bytes"),
        (spoiled(lambda b: setattr(b.graph.tensors[1], "type", 5)), "of type 5"),
        (spoiled(lambda b: setattr(b.model.buffers[1], "offset", 8)), "field 1"),
        (spoiled(lambda b: b.model.subgraphs.append(b.graph)), "2 graphs"),
        (spoiled(lambda b: setattr(b.model, "version", 9)), "has schema 9"),
        (spoiled(lambda b: setattr(b.graph, "outputs", [])), "nothing makes the output"),
    ],
    ids=[
        "huge shape", "negative shape", "wrong shape", "huge pad", "lying pad", "lying product", "pad from outside",
        "Flex", "custom", "WHILE", "custom options", "no code", "no tensor", "no output tensor", "writes a constant",
        "no buffer", "variable", "contents missing", "strings", "contents elsewhere", "two graphs", "schema",
        "no output",
    ],
)  # fmt: skip
def test_a_tflite_file_that_no_device_needs(content: bytes, said: str) -> None:
    with pytest.raises(ArtefactError, match=said):
        check_model(content, ".tflite")


class SharedOperator(tfl.OperatorT):
    """Stands in the file once, however often a graph lists it."""

    place: int | None = None

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802 - the schema's name
        if self.place is None:
            self.place = super().Pack(builder)
        return self.place


def test_operators_that_share_their_inputs_are_counted_before_they_are_kept() -> None:
    builder = Builder()
    builder.graph.operators = [SharedOperator(opcodeIndex=0, inputs=[0] * 1_000, outputs=[2])] * 20_000
    content = builder.content()
    tracemalloc.start()
    with pytest.raises(ArtefactError, match="inputs and outputs"):
        check_model(content, ".tflite")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(content) < 100_000
    assert peak_bytes < 40 << 20


def test_a_table_of_many_fields_is_refused_for_many_tables_may_share_its_description() -> None:
    """A vtable of 65 fields, and the one table that uses it."""
    vtable = struct.pack("<HH65H", 134, 4, *[0] * 65)
    content = struct.pack("<I4s", 8 + len(vtable), b"TFL3") + vtable + struct.pack("<i", len(vtable))
    with pytest.raises(ArtefactError, match="more than 64 fields"):
        check_model(content, ".tflite")


# Any bytes.

FILES = {".onnx": ONNX, ".tflite": TFLITE}


@settings(deadline=None, max_examples=400)
@given(suffix=st.sampled_from(sorted(FILES)), data=st.data())
def test_a_file_with_changed_bytes_is_refused_or_still_bounded(suffix: str, data: st.DataObject) -> None:
    content = bytearray(FILES[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    refused(bytes(content), suffix)


@settings(deadline=None)
@given(suffix=st.sampled_from(sorted(FILES)), data=st.data())
def test_a_file_that_was_cut_is_refused(suffix: str, data: st.DataObject) -> None:
    content = FILES[suffix]
    assert refused(content[: data.draw(st.integers(0, len(content) - 1))], suffix)


@settings(deadline=None)
@given(suffix=st.sampled_from(sorted(FILES)), content=st.binary(max_size=400))
@example(suffix=".tflite", content=b"\xff\xff\xff\xffTFL3")
@example(suffix=".tflite", content=b"\x08\0\0\0TFL3" + struct.pack("<i", 8) + bytes(16))
@example(suffix=".onnx", content=b"")
@example(suffix=".onnx", content=b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
@example(suffix=".onnx", content=b"\x80" * 300)
def test_any_bytes_are_refused(suffix: str, content: bytes) -> None:
    assert refused(content, suffix)


def test_many_empty_nodes_cost_no_more_than_their_number() -> None:
    """The worst that Protocol Buffers do to whoever makes objects of them: two bytes each."""
    body = b"\x0a\0" * (1 << 15)
    content = b"\x3a" + bytes([0x80 | len(body) & 127, 0x80 | len(body) >> 7 & 127, len(body) >> 14]) + body
    tracemalloc.start()
    try:
        assert refused(content, ".onnx")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


# Safetensors.

ARRAYS = {"input": np.arange(6, dtype=np.float32).reshape(2, 3), "ids": np.arange(4), "none": np.zeros((0, 3), np.int8)}


def test_arrays_come_back() -> None:
    again = read_tensors(write_tensors(ARRAYS), "here")
    assert again.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype


def test_the_file_is_what_the_safetensors_package_reads_and_writes() -> None:
    from safetensors.numpy import load, save

    theirs = load(write_tensors(ARRAYS))
    ours = read_tensors(save(ARRAYS), "here")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name], array)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_changed_tensor_file_is_refused_or_holds_what_is_there(data: st.DataObject) -> None:
    content = bytearray(write_tensors(ARRAYS))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        arrays = read_tensors(bytes(content), "here")
    except ArtefactError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= len(content)
