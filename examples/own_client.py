"""Your own Flower ClientApp against a Hedgerow server: plain NumPy here, with the server's codecs by one mod.

Softmax regression on 8x8 digits. `model()` is for the server alone: it is what the weights belong to there.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits

from clients.mods import update_codec_mod

SHAPES = {"1.weight": (10, 64), "1.bias": (10,)}
app = ClientApp(mods=[update_codec_mod(SHAPES)])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Arrays in, arrays out: which codecs the server asks for, and what it sent of the model, is not seen here."""
    weight, bias = (message.content["arrays"][name].numpy() for name in SHAPES)
    x, y = examples(context)
    for _ in range(message.content["config"]["train.epochs"]):
        p = softmax(x @ weight.T + bias)
        loss = float(-np.log(p[np.arange(len(y)), y] + 1e-9).mean())
        p[np.arange(len(y)), y] -= 1
        weight, bias = weight - 0.5 * p.T @ x / len(y), bias - 0.5 * p.mean(0)
    trained = {name: Array(value.astype(np.float32)) for name, value in zip(SHAPES, (weight, bias), strict=True)}
    return reply(message, {"num-examples": len(y), "loss": loss}, arrays=ArrayRecord(trained))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    weight, bias = (message.content["arrays"][name].numpy() for name in SHAPES)
    x, y = examples(context)
    accuracy = float(np.mean(np.argmax(x @ weight.T + bias, 1) == y))
    return reply(message, {"num-examples": len(y), "accuracy": accuracy})


def reply(message: Message, figures: dict[str, Any], **records: ArrayRecord) -> Message:
    return Message(RecordDict({"metrics": MetricRecord(figures), **records}), reply_to=message)


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def examples(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """The digits that belong to this node."""
    mine = slice(context.node_config["partition-id"], None, context.node_config["num-partitions"])
    return digits()[0][mine], digits()[1][mine]


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def model():
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
