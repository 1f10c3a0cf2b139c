"""`capture`: a module's forward pass in training mode, through `torch.export`, as a verified graph."""

from __future__ import annotations

import contextlib
import logging
import operator
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from edge_runtime.capture.aten import ATEN
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
        raise UnsupportedOpError(f"torch.export cannot trace the model: {str(error).splitlines()[0]}") from error
    signature = program.graph_signature
    state = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    builder = Builder(batch=examples[0].shape[0])
    names: dict[fx.Node, Any] = {}
    counters: set[fx.Node] = set()
    for node in program.graph.nodes:
        builder.hint, builder.source = node.name, _source(node)
        match node.op:
            case "placeholder":
                if _is_counter(node, state):
                    counters.add(node)
                else:
                    names[node] = _placeholder(builder, node, state.get(node.name))
            case "call_function" if counters.intersection(node.all_input_nodes):
                counters.add(node)  # batch norm counting its batches: bookkeeping of the module, not arithmetic
            case "call_function" if node.target is operator.getitem and not node.users:
                pass  # such as the indices of a pool, which export picks out whether they are used or not
            case "call_function":
                names[node] = _call(builder, node, names)
            case "output":
                outputs = [names[value] for value in node.all_input_nodes if value not in counters]
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
        yield
    finally:
        logger.setLevel(level)


def _placeholder(builder: Builder, node: fx.Node, state_name: str | None) -> str:
    tensor = node.meta["val"]
    if tensor.dtype not in _DTYPES:
        raise UnsupportedOpError(
            f"tensor {state_name or node.name} is {tensor.dtype}; use float32, or int64 for tokens"
        )
    add = builder.state if state_name else builder.input
    return add(state_name or node.name, tensor.shape, _DTYPES[tensor.dtype])


def _call(builder: Builder, node: fx.Node, names: dict[fx.Node, Any]) -> Any:
    arguments: Any = fx.map_arg(node.args, lambda value: names[value])
    options: Any = fx.map_arg(node.kwargs, lambda value: names[value])
    if node.target is operator.getitem:
        if arguments[1] >= len(arguments[0]):
            raise builder.refuse(f"output {arguments[1]} of this op", "use its first one only")
        return arguments[0][arguments[1]]
    name = str(node.target).removeprefix("aten.")
    if name.partition(".")[0].endswith("_"):
        _require_own_bytes(builder, node)
    if name not in ATEN:
        raise builder.refuse(f"op {name}", "the supported ops are those of edge_runtime/capture/aten.py")
    return ATEN[name](builder, *arguments, **options)


# Ops whose result shares its bytes with their input, so that changing it in place changes that too.
_VIEWS = {
    "alias", "chunk", "contiguous", "detach", "expand", "flatten", "permute", "reshape", "select", "slice", "split",
    "squeeze", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


def _require_own_bytes(builder: Builder, node: fx.Node) -> None:
    """Refuse an in-place op whose effect reaches beyond its own result: a graph of values would miss it."""
    changed: Any = node.args[0]
    if changed.op == "placeholder":
        raise builder.refuse("changing an input, a weight or a buffer in place", "compute a new tensor")
    while changed.target is operator.getitem:
        changed = changed.args[0]
    if str(changed.target).removeprefix("aten.").partition(".")[0] in _VIEWS:
        raise builder.refuse("changing a view in place", "compute a new tensor")


def _is_counter(node: fx.Node, state: dict[str, str]) -> bool:
    return state.get(node.name, "").endswith("num_batches_tracked")


def _source(node: fx.Node) -> str:
    """`file:line: code` of the innermost frame that is not PyTorch's own."""
    frames = [match for match in _FRAME.finditer(node.meta.get("stack_trace") or "") if "/torch/" not in match["file"]]
    return f"{frames[-1]['file']}:{frames[-1]['line']}: {(frames[-1]['code'] or '').strip()}" if frames else ""
