"""What a run is made of between two rounds, as one tree, and that tree as bytes.

A tree's inner nodes are mappings with text keys and lists; its leaves are NumPy arrays, bytes, numbers, texts, booleans
and None. As bytes it is a safetensors file: arrays and byte strings are its tensors, named after their place in the
tree, and the rest is JSON in its metadata. It is read back without running anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edge_runtime.errors import RunError

Tree = Mapping[str, Any]
VERSION = 1
_ENTRY = "hedgerow"  # of the metadata
_ARRAY, _BYTES = "\u0000array", "\u0000bytes"  # a mapping of this one key stands for the tensor that it names


class Stateful(Protocol):
    """A part of the run that is not the same after a round as before it."""

    def state(self) -> Tree:
        """All that `restore` needs; arrays may be the live ones, for they are written before anything moves on."""

    def restore(self, state: Tree) -> None:
        """Go on from there; called once, before the first use of a part that was built with the same settings."""


def pack(tree: Tree) -> bytes:
    """The tree as a safetensors file; equal trees are equal bytes.

    Raises:
        TypeError, ValueError: a leaf is of another type, a key is no text, or a number is not finite.

    """
    tensors: dict[str, np.ndarray] = {}
    body = {"version": VERSION, "tree": _taken_apart(tree, "", tensors)}
    # One entry: safetensors writes several in any order.
    return bytes(save(tensors, {_ENTRY: json.dumps(body, sort_keys=True, allow_nan=False)}))


def unpack(content: bytes) -> dict[str, Any]:
    """What `pack` wrote; tuples have become lists.

    Raises:
        RunError: it is not what `pack` wrote.

    """
    try:
        tensors = load(content)
        body = json.loads(_metadata(content)[_ENTRY])
        if body["version"] != VERSION:
            raise RunError(f"checkpoint: version {body['version']!r}, this release reads {VERSION}")
        tree = _joined(body["tree"], tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"checkpoint: cannot be read ({error})") from error
    if not isinstance(tree, dict):
        raise RunError("checkpoint: holds no tree")
    return tree


def _taken_apart(node: Any, place: str, tensors: dict[str, np.ndarray]) -> Any:
    match node:
        case np.ndarray():
            tensors[place] = np.ascontiguousarray(node)
            return {_ARRAY: place, "shape": list(node.shape)}  # a scalar's shape () would not survive
        case bytes():
            tensors[place] = np.frombuffer(node, np.uint8)
            return {_BYTES: place}
        case Mapping():
            if wrong := [key for key in node if not isinstance(key, str)]:
                raise TypeError(f"checkpoint: {place or 'the tree'} has the key {wrong[0]!r}, which is no text")
            return {key: _taken_apart(value, f"{place}/{key}", tensors) for key, value in node.items()}
        case list() | tuple():
            return [_taken_apart(value, f"{place}/{at}", tensors) for at, value in enumerate(node)]
        case bool() | int() | float() | str() | None:
            return node
    raise TypeError(f"checkpoint: {place} is a {type(node).__name__}")


def _joined(node: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    if isinstance(node, list):
        return [_joined(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if _ARRAY in node:
        return tensors[node[_ARRAY]].reshape(node["shape"])
    if _BYTES in node:
        return tensors[node[_BYTES]].tobytes()
    return {key: _joined(value, tensors) for key, value in node.items()}


def _metadata(content: bytes) -> dict[str, str]:
    # safetensors reads metadata from files alone; the header is a length (u64, little-endian) and JSON.
    length = int.from_bytes(content[:8], "little")
    found = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return found if isinstance(found, dict) else {}
