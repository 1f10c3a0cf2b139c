"""What runs .onnx on a device: nothing that reaches outside the file, no saturating kernels, any batch in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.deploy.run import onnx_runtime, onnx_wire
from edge_runtime.deploy.run.onnx_runtime import OnnxBackend, cpu_flags, session_settings
from edge_runtime.errors import ArtefactError


def scaled(weight: TensorProto | None = None, *extra: onnx.NodeProto) -> onnx.ModelProto:
    """Y = x w for rows of four numbers, with what else is given."""
    weight = weight or numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"]), *extra]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def outside(name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secrets.bin")
    return tensor


def test_rows_are_taken_in_parts_and_come_back_in_order() -> None:
    backend = OnnxBackend(scaled().SerializeToString())
    x = np.random.default_rng(0).normal(size=(2 * onnx_runtime.ROWS + 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(backend.predict(x), x * np.arange(4, dtype=np.float32))
    assert (backend.input.shape, backend.input.dtype) == ((-1, 4), "f32")


def test_an_input_that_the_model_cannot_take_is_a_value_error_in_one_line() -> None:
    backend = OnnxBackend(scaled().SerializeToString())
    with pytest.raises(ValueError, match="cannot run this input") as caught:
        backend.predict(np.zeros((2, 5), np.float32))
    assert "\n" not in str(caught.value)


# Files that reach outside themselves.


def in_a_constant() -> onnx.ModelProto:
    return scaled(None, helper.make_node("Constant", [], ["c"], value=outside("c")))


def in_a_branch() -> onnx.ModelProto:
    value = helper.make_tensor_value_info("b", TensorProto.FLOAT, [4])
    branch = helper.make_graph([helper.make_node("Identity", ["v"], ["b"])], "branch", [], [value], [outside("v")])
    made = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    return scaled(None, made)


def in_a_function() -> onnx.ModelProto:
    model = scaled()
    body = [helper.make_node("Constant", [], ["y"], value=outside("inner"))]
    model.functions.append(helper.make_function("own", "F", [], ["y"], body, [helper.make_opsetid("", 13)]))
    return model


def only_said_so() -> onnx.ModelProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.data_location = TensorProto.EXTERNAL
    return scaled(tensor)


@pytest.mark.parametrize("model", [lambda: scaled(outside()), in_a_constant, in_a_branch, in_a_function, only_said_so])
def test_a_tensor_in_another_file_is_refused_before_onnx_runtime_sees_it(
    model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    content = model().SerializeToString()  # type: ignore[operator]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the session was made")

    monkeypatch.setattr(onnxruntime, "InferenceSession", never)
    with pytest.raises(ArtefactError, match="is in another file"):
        OnnxBackend(content)


# The reader of the wire format.


def test_the_reader_finds_the_nodes_and_tensors_that_onnx_finds() -> None:
    model = in_a_branch()
    found = list(onnx_wire.messages(model.SerializeToString()))
    assert sorted(one.text(4) for one in found if one.kind == "node") == ["Identity", "Identity", "If", "Mul"]
    assert sorted(one.text(8) for one in found if one.kind == "tensor") == ["v", "v", "w"]


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        list(onnx_wire.messages(content))
    except ArtefactError:
        return


@given(st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(in_a_branch().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        list(onnx_wire.messages(bytes(content[:cut])))
    except ArtefactError:
        return


def test_graphs_nested_without_end_are_refused() -> None:
    content = b""
    for _ in range(300):  # graph > node > attribute > graph
        content = b"".join(_field(number, inner) for number, inner in [(6, content)])
        content = _field(1, _field(5, content))
    with pytest.raises(ArtefactError, match="nested too deep"):
        list(onnx_wire.messages(_field(7, content)))


def _field(number: int, content: bytes) -> bytes:
    size = len(content)
    parts = [number << 3 | 2]
    while size > 127:
        parts.append(size & 127 | 128)
        size >>= 7
    return bytes([*parts, size]) + content


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(1000), b"\xff" * 40])
def test_bytes_that_are_no_model_are_refused(content: bytes) -> None:
    with pytest.raises(ArtefactError):
        OnnxBackend(content)


# The session.


@pytest.mark.parametrize(
    ("machine", "flags", "exact"),
    [
        ("x86_64", {"avx2"}, True),
        ("x86_64", {"avx2", "avx512f"}, True),
        ("x86_64", set(), True),
        ("AMD64", set(), True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx512f", "avx512_vnni"}, False),
        ("aarch64", {"asimddp"}, False),
    ],
)
def test_exact_kernels_are_asked_for_where_others_saturate(machine: str, flags: set[str], exact: bool) -> None:
    assert session_settings(machine, frozenset(flags)) == ({"session.x64quantprecision": "1"} if exact else {})


def test_the_settings_reach_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, "cpu_flags", frozenset)
    monkeypatch.setattr(onnx_runtime.platform, "machine", lambda: "x86_64")
    backend = OnnxBackend(scaled().SerializeToString())
    assert backend.options.get_session_config_entry("session.x64quantprecision") == "1"


def test_flags_are_those_of_the_first_core(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(path) == {"fpu", "avx2", "avx_vnni"}
    path.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert cpu_flags(path) == set()
    assert cpu_flags(tmp_path / "missing") == set()
