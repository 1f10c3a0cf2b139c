"""What a deployed INT8 model holds as integers, op by op. Export and training with rounding in place both go by it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edge_runtime.errors import ConfigError
from edge_runtime.ir.graph import Graph

# Their output is their input's integers, moved, or zeros: both are on one grid.
MOVES = ("max_pool2d", "reshape", "transpose", "slice", "pad", "expand")
# Their inputs and outputs are on grids. All other ops compute in float32, from rounded inputs where those are.
INTEGER_OPS = (
    "conv2d", "linear", "add", "mul", "relu", "relu6", "clip", "scale", "sigmoid", "tanh", "mean", "avg_pool2d", "cat",
    *MOVES,
)  # fmt: skip
# Weights that are rows of numbers, by the places where their ops read them: stored as integers also where the op
# itself is float32.
WEIGHTS = {"conv2d": (1,), "linear": (1,), "embedding": (0,), "gru": (2, 3), "lstm": (3, 4)}

ACTIVATION_BITS = 8


def layer_weights(graph: Graph) -> list[str]:
    """The weights that are tensors of the model as it is, not made from others, in the order in which layers read."""
    read = (node.inputs[place] for node in graph.nodes for place in WEIGHTS.get(node.op, ()))
    return list(dict.fromkeys(name for name in read if name in graph.state))


def bits_by_weight(
    weights: Collection[str], asked: int | Mapping[str, int], key: str = "weight_bits"
) -> dict[str, int]:
    """The bits of each weight: `asked` of all, or by name, 8 for those that are not there.

    Raises:
        ConfigError: bits outside 2 to 8, or names of no weight; `key` is where they were asked for.

    """
    given = dict.fromkeys(weights, asked) if isinstance(asked, int) else asked
    if unknown := sorted(set(given) - set(weights)):
        raise ConfigError(f"{key}: {unknown[0]} is no weight of a layer; there are {', '.join(weights)}")
    if wrong := [name for name, one in given.items() if not 2 <= one <= 8]:
        raise ConfigError(f"{key} of {wrong[0]} = {given[wrong[0]]}: must be from 2 to 8")
    return {name: given.get(name, 8) for name in weights}
