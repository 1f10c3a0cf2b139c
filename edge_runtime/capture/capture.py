"""`capture`: a module's forward pass in training mode, through `torch.export`, as a verified graph."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import re
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import fx

from edge_runtime.capture import adapters
from edge_runtime.capture.aten import ATEN, INSTEAD
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.builder import Builder
from edge_runtime.ir.graph import Graph
from edge_runtime.ir.verify import verify

_DTYPES = {torch.float32: "f32", torch.int64: "i64"}
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in \S+(?:\n\s*(?!File ")(?P<code>[^\n]*))?')


def capture(module: torch.nn.Module, *examples: torch.Tensor) -> Graph:
    """The graph of `module(*examples)`, shapes fixed to the examples', layers in the mode they are in.

    The first dim of the first example is the batch.

    Raises:
        UnsupportedOpError: an op that cannot be captured exactly; names it, the user's line, and what to use instead.

    """
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")  # of recurrent layers, whose cached weight list export sees as changed
            program = torch.export.export(module, examples, strict=False)
    except Exception as error:  # torch.export fails in many private types
        text = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UnsupportedOpError(f"torch.export cannot trace the model: {text}") from error
    signature = program.graph_signature
    if constants := sorted(signature.inputs_to_lifted_tensor_constants.values()):
        raise UnsupportedOpError(f"tensor {constants[0]} is no parameter and no buffer; use register_buffer for it")
    state = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    builder = Builder(batch=examples[0].shape[0])
    names: dict[fx.Node, Any] = {}
    counters: set[fx.Node] = set()
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    for node in program.graph.nodes:
        builder.hint, builder.source = node.name, _source(node)
        match node.op:
            case "placeholder":
                if _is_counter(node, state):
                    counters.add(node)
                else:
                    names[node] = _placeholder(builder, node, state.get(node.name), set(state.values()))
            case "call_function" if "_assert_" in str(node.target):
                pass  # a check that export makes while it traces
            case "call_function" if counters.intersection(node.all_input_nodes):
                counters.add(node)  # batch norm counting its batches: bookkeeping of the module, not arithmetic
            case "call_function" if node.target is operator.getitem and not node.users:
                pass  # such as the indices of a pool, which export picks out whether they are used or not
            case "call_function":
                names[node] = _call(builder, node, names, order)
            case "output":
                results: Any = node.args[0]
                outputs = [names[value] for value in results if value not in counters]
            case other:
                raise builder.refuse(f"graph node {other}")
    return verify(builder.finish(outputs))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the pages that torch.export logs about a model which it then refuses with an error."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _placeholder(builder: Builder, node: fx.Node, state_name: str | None, taken: Collection[str]) -> str:
    tensor = node.meta["val"]
    name = state_name or node.name
    if state_name is None and (_reserved(name) or name in taken):
        name = f"{name}_input"
    elif _reserved(name):
        raise UnsupportedOpError(f"the engine has an own {name!r}; give this parameter or buffer another name")
    if tensor.dtype not in _DTYPES:
        raise UnsupportedOpError(
            f"tensor {state_name or node.name} is {tensor.dtype}; use float32, or int64 for tokens"
        )
    add = builder.state if state_name else builder.input
    return add(name, tensor.shape, _DTYPES[tensor.dtype])


_OWN_NAMES = re.compile(r"rows|random|lr|corrections|share|(norm|target)\.\d+|loss\.(log_variances|class_weights\.\d+)")


def _reserved(name: str) -> bool:
    """Whether a training step has an input of that name."""
    return _OWN_NAMES.fullmatch(name) is not None


def _call(builder: Builder, node: fx.Node, names: dict[fx.Node, Any], order: dict[fx.Node, int]) -> Any:
    arguments: Any = fx.map_arg(node.args, lambda value: names[value])
    options: Any = fx.map_arg(node.kwargs, lambda value: names[value])
    if node.target is operator.getitem:
        if arguments[1] >= len(arguments[0]):
            raise builder.refuse(f"output {arguments[1]} of this op", "use its first one only")
        return arguments[0][arguments[1]]
    name = str(node.target).removeprefix("aten.")
    if name.partition(".")[0].endswith("_"):
        _require_own_bytes(builder, node, order)
    if name not in ATEN:
        packet = name.partition(".")[0]
        raise builder.refuse(f"op {name}", INSTEAD.get(packet, "write it with layers and functions that are supported"))
    try:
        return ATEN[name](builder, *arguments, **options)
    except (TypeError, ZeroDivisionError) as error:  # an argument that the op's row does not have, or cannot use
        raise builder.refuse(f"op {name} with these arguments ({error})") from error


# Ops whose result shares its bytes with their input, so that changing one in place changes the other.
_VIEWS = {
    "_unsafe_view", "alias", "chunk", "contiguous", "detach", "dropout", "expand", "flatten", "permute", "reshape",
    "select", "slice", "split", "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip


def _require_own_bytes(builder: Builder, node: fx.Node, order: dict[fx.Node, int]) -> None:
    """Refuse an in-place op whose effect is seen through another name: a graph of values would miss it."""
    changed: Any = node.args[0]
    if changed.op == "placeholder":
        raise builder.refuse("changing an input, a weight or a buffer in place", "compute a new tensor")
    while _is_view(changed):
        changed = changed.args[0]
    same, todo = {changed}, [changed]
    while todo:
        new = {user for user in todo.pop().users if _is_view(user)} - same
        same |= new
        todo += new
    if any(order[user] > order[node] for one in same for user in one.users):
        raise builder.refuse("changing a tensor in place that is used again under another name", "compute a new tensor")


def _is_view(node: Any) -> bool:
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    return node.op == "call_function" and (node.target is operator.getitem or name in _VIEWS)


def _is_counter(node: fx.Node, state: dict[str, str]) -> bool:
    return state.get(node.name, "").endswith("num_batches_tracked")


def _source(node: fx.Node) -> str:
    """`file:line: code` of the innermost frame that is neither PyTorch's nor an adapter's."""
    every = _FRAME.finditer(node.meta.get("stack_trace") or "")
    frames = [match for match in every if "/torch/" not in match["file"] and match["file"] != adapters.__file__]
    if frames:
        return f"{frames[-1]['file']}:{frames[-1]['line']}: {(frames[-1]['code'] or '').strip()}"
    path, kind = next(reversed((node.meta.get("nn_module_stack") or {"": ("", "")}).values()))
    return f"module {path!r} ({str(kind).rsplit('.', 1)[-1]})" if path else ""
