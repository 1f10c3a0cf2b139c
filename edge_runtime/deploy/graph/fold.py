"""Passes from a captured model to one that is as small and as fusable as it can be; each keeps the function the same.

`fold` is their order. `hard_activations` changes the function, and is for those who ask.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np

from edge_runtime.deploy.graph.float_model import FloatModel, Weights, checked
from edge_runtime.engine.reference import FORWARD
from edge_runtime.ir.builder import Builder
from edge_runtime.ir.graph import Graph, Node, Value


def fold(model: FloatModel) -> FloatModel:
    """The same function with constants computed, batch norms in the layers before them, activations before pools."""
    for one in (fold_constants, own_tensors, fold_batch_norm, activation_before_pool):
        model = one(model)
    return model


def fold_constants(model: FloatModel) -> FloatModel:
    """Nodes that read weights alone become weights, such as a merged adapter; `detach` goes.

    But not one that repeats a weight for each row, such as a class token: it is another for another batch.
    """
    weights = dict(model.weights)
    values, nodes, same = dict(model.graph.values), [], dict[str, str]()

    def constant(node: Node) -> bool:
        if not node.inputs or len(node.outputs) != 1 or not all(name in weights for name in node.inputs):
            return False
        return all(n % model.batch or not n for n in values[node.outputs[0]].shape)

    for old in model.graph.nodes:
        node = dataclasses.replace(old, inputs=tuple(same.get(name, name) for name in old.inputs))
        if node.op == "detach":
            same[node.outputs[0]] = node.inputs[0]
        elif constant(node):
            result = FORWARD[node.op](*(weights[name] for name in node.inputs), **node.attributes)
            weights[node.outputs[0]] = np.asarray(result, np.float32)
        else:
            nodes.append(node)
    outputs = tuple(same.get(name, name) for name in model.graph.outputs)
    state = (*model.graph.state, *(name for name in weights if name not in model.weights))
    graph = dataclasses.replace(model.graph, nodes=tuple(nodes), state=state, values=values, outputs=outputs)
    return finished(graph, weights, model.batch)


def own_tensors(model: FloatModel) -> FloatModel:
    """Layers that share a bias, or a weight under different ones, get copies: each is then scaled for itself."""
    weights, values, nodes = dict(model.weights), dict(model.graph.values), []
    readers = Counter(name for node in model.graph.nodes for name in node.inputs)
    for node in model.graph.nodes:
        inputs = list(node.inputs)
        if node.op in ("conv2d", "linear"):
            for place, name in enumerate(inputs):
                if place and name in weights and readers[name] > 1:
                    readers[name] -= 1
                    inputs[place] = copy = fresh(values, name)
                    weights[copy] = weights[name]
                    values[copy] = dataclasses.replace(values[name], name=copy)
        nodes.append(dataclasses.replace(node, inputs=tuple(inputs)))
    state = (*model.graph.state, *(name for name in weights if name not in model.weights))
    graph = dataclasses.replace(model.graph, nodes=tuple(nodes), state=state, values=values)
    return finished(graph, weights, model.batch)


def fold_batch_norm(model: FloatModel) -> FloatModel:
    """The weight becomes w g / s, the bias (b - mean) g / s + beta; s = sqrt(var + eps) (Jacob et al. 2018, 3.2).

    One that follows no layer, or a layer which others read too, becomes a multiplication and an addition per channel.
    """
    graph, weights, values = model.graph, dict(model.weights), dict(model.graph.values)
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    readers.update(graph.outputs)
    nodes: list[Node] = []
    places: dict[str, int] = {}  # of each value, the place in `nodes` of the node that makes it
    for node in graph.nodes:
        for name in node.outputs:
            places[name] = len(nodes)
        if node.op != "batch_norm_apply" or not all(name in weights for name in node.inputs[1:]):
            nodes.append(node)
            continue
        gamma, beta, mean, var = (weights[name].astype(np.float64) for name in node.inputs[1:])
        by = gamma / np.sqrt(var + node.attributes["eps"])
        plus = beta - mean * by
        source, output = node.inputs[0], node.outputs[0]
        layer = nodes[places[source]] if source in places else None
        if layer and _takes(layer, values, weights) and readers[source] == 1:
            name = layer.inputs[1]
            w = weights[name].astype(np.float64)
            weights[name] = (w * by.reshape(-1, *[1] * (w.ndim - 1))).astype(np.float32)
            before = weights[layer.inputs[2]].astype(np.float64) if len(layer.inputs) > 2 else 0.0
            bias = layer.inputs[2] if len(layer.inputs) > 2 else fresh(values, f"{name.removesuffix('weight')}bias")
            weights[bias] = (before * by + plus).astype(np.float32)
            values[bias] = Value(bias, by.shape)
            places[output] = places[source]
            nodes[places[source]] = dataclasses.replace(layer, inputs=(*layer.inputs[:2], bias), outputs=(output,))
        else:
            shape = (len(by), *[1] * (len(values[source].shape) - 2))
            scaled = fresh(values, f"{output}.scaled")
            values[scaled] = dataclasses.replace(values[output], name=scaled)
            names = []
            for what, content in (("by", by), ("plus", plus)):
                names.append(name := fresh(values, f"{output}.{what}"))
                weights[name], values[name] = content.reshape(shape).astype(np.float32), Value(name, shape)
            nodes.append(Node("mul", (source, names[0]), (scaled,), source=node.source))
            nodes.append(Node("add", (scaled, names[1]), (output,), source=node.source))
            places[output] = len(nodes) - 1
    state = (*graph.state, *(name for name in weights if name not in model.weights))
    return finished(dataclasses.replace(graph, nodes=tuple(nodes), state=state, values=values), weights, model.batch)


def _takes(layer: Node, values: dict[str, Value], weights: Weights) -> bool:
    """Whether a batch norm behind `layer` can go into its weights: its channels are dim 1 of what it makes."""
    rank = len(values[layer.outputs[0]].shape)
    fits = layer.op == "conv2d" or (layer.op == "linear" and rank == 2)
    return fits and all(name in weights for name in layer.inputs[1:])


def activation_before_pool(model: FloatModel) -> FloatModel:
    """relu(max_pool(x)) becomes max_pool(relu(x)): equal, and the activation then joins the layer that makes x."""
    graph = model.graph
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    readers.update(graph.outputs)
    nodes, values = list(graph.nodes), dict(graph.values)
    makers = {node.outputs[0]: place for place, node in enumerate(nodes) if node.outputs}
    for place, act in enumerate(nodes):
        at = makers.get(act.inputs[0], -1) if act.inputs else -1
        if act.op not in ("relu", "relu6") or at < 0 or nodes[at].op != "max_pool2d" or readers[act.inputs[0]] != 1:
            continue
        pool, between, y = nodes[at], act.inputs[0], act.outputs[0]
        index = pool.outputs[1]
        values[between] = dataclasses.replace(values[pool.inputs[0]], name=between)
        nodes[at] = dataclasses.replace(act, inputs=pool.inputs, outputs=(between,))
        nodes[place] = dataclasses.replace(pool, inputs=(between,), outputs=(y, index))
    return finished(dataclasses.replace(graph, nodes=tuple(nodes), values=values), model.weights, model.batch)


def hard_activations(model: FloatModel) -> FloatModel:
    """Costly activations by clipped lines: another function, close to the old one, that wants a little fine-tuning.

    sigmoid(x) becomes clip(x/6 + 1/2, 0, 1) (Howard et al. 2019, section 5.2), silu(x) x times that, tanh(x)
    clip(x, -1, 1), and gelu(x) x sigmoid(1.702 x) (Hendrycks and Gimpel 2016) with that sigmoid.
    """
    graph = model.graph
    builder = Builder(dataclasses.replace(graph, nodes=()), batch=model.batch)
    same: dict[str, str] = {}
    for node in graph.nodes:
        inputs = tuple(same.get(name, name) for name in node.inputs)
        if node.op in _HARD:
            builder.hint, builder.source = f"{node.outputs[0]}.hard", node.source
            same[node.outputs[0]] = _HARD[node.op](builder, inputs[0])
        else:
            builder.append(node, inputs, graph.values)
    done = builder.finish(same.get(name, name) for name in graph.outputs)
    return finished(done, model.weights, model.batch)


def _line(b: Builder, x: str, slope: float) -> str:
    return b.emit("clip", b.emit("scale", x, by=slope, plus=0.5), low=0.0, high=1.0)


_HARD: dict[str, Callable[[Builder, str], str]] = {
    "sigmoid": lambda b, x: _line(b, x, 1 / 6),
    "silu": lambda b, x: b.emit("mul", x, _line(b, x, 1 / 6)),
    "gelu": lambda b, x: b.emit("mul", x, _line(b, x, 1.702 / 6)),
    "tanh": lambda b, x: b.emit("clip", x, low=-1.0, high=1.0),
}


def finished(graph: Graph, weights: Weights, batch: int) -> FloatModel:
    """A model of `graph` without what nothing reads, its values and state told from `weights` where they are new."""
    values = dict(graph.values)
    for name in graph.state:
        values.setdefault(name, Value(name, weights[name].shape))
        if values[name].shape != weights[name].shape:
            values[name] = dataclasses.replace(values[name], shape=weights[name].shape)
    kept = Builder(dataclasses.replace(graph, values=values)).finish(graph.outputs)
    used = {name for node in kept.nodes for name in node.inputs} | set(kept.outputs)
    state = tuple(name for name in kept.state if name in used)
    gone = set(kept.state) - set(state)
    kept = dataclasses.replace(kept, state=state, values={n: v for n, v in kept.values.items() if n not in gone})
    return checked(FloatModel(kept, {name: weights[name] for name in state}, batch))


def fresh(taken: dict[str, Value], name: str) -> str:
    """`name`, or the first free one of `name.1`, `name.2`, ..."""
    if name not in taken:
        return name
    return next(one for i in range(1, len(taken) + 2) if (one := f"{name}.{i}") not in taken)
