"""`update_codec_mod`: the codecs and versions of a Hedgerow server for any Flower ClientApp, whatever it trains with.

    app = ClientApp(mods=[update_codec_mod(like={"w": (784, 10), "b": (10,)})])

    @app.train()
    def train(message, context):
        arrays, config = message.content["arrays"], message.content["config"]   # ArrayRecord, ConfigRecord
        ...
        metrics = MetricRecord({"num-examples": n, "loss": loss})
        return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)

The function trains `arrays` and returns all of them; what it returns of the tensors that move, less what it was given,
is the update. Rounds under secure aggregation are this mod's work too: the function is asked to train, and its update
leaves the node under masks alone. Put this mod first: what stands behind it in the list (clipping, noise) sees plain
arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict

from clients.exchange import Tensors, encode_update, receive_model
from clients.local_privacy import randomised
from clients.records import answer, client_number, holding, open_state, read_model, read_task
from clients.round import LocalUpdate
from clients.secure import begin, is_setup, settle
from edge_runtime.config import flatten
from edge_runtime.errors import PeerError
from edge_runtime.updates import TensorLayout
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.versions import gather

Train = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, Train], Message]
Shape = tuple[int, ...]


def update_codec_mod(
    like: Mapping[str, np.typing.NDArray[np.generic] | Shape], moving: Collection[str] | None = None
) -> Mod:
    """A Flower client mod that decodes the model before the train or evaluate function, and encodes the update after.

    Args:
        like: arrays or shapes of the model's float tensors, named and ordered as on the server.
        moving: names of those that training moves, as on the server; None for all.

    """
    layout = TensorLayout.of(like)
    tensors = Tensors(layout, layout if moving is None else layout.subset(moving))

    def mod(message: Message, context: Context, call_next: Train) -> Message:
        kind = message.metadata.message_type.split(".")[0]
        if kind not in (MessageType.TRAIN, MessageType.EVALUATE):
            return call_next(message, context)
        if (settled := settle(message, context)) is not None:
            return settled
        task, sent = read_task(message), read_model(message)
        state = open_state(context, task)
        if task.control or task.normalise or task.personal.layers or task.personal.tune:
            raise PeerError("SCAFFOLD, FedNova and personalisation need Hedgerow's own client app; this one has a mod")
        weights, in_secret = receive_model(task, sent, tensors, state), is_setup(message)

        def work() -> Message:
            config = ConfigRecord({**flatten(task)})
            message.content = RecordDict({"arrays": _as_record(weights, layout), "config": config})
            return call_next(message, context)

        def delta_of(reply: Message) -> FloatVector:
            return _moved(reply, tensors.moving) - gather(weights, layout, tensors.moving)

        if in_secret:

            def train() -> tuple[FloatVector, int]:
                reply = work()
                if reply.has_error():
                    raise RuntimeError(reply.error.reason)
                return delta_of(reply), _examples(reply)

            return holding(begin(message, context, task, weights, tensors.moving.size, train), sent.model_id)
        reply = work()
        if reply.has_error():
            return reply
        figures = reply.content["metrics"]
        if not isinstance(figures, MetricRecord):
            raise TypeError("the reply's metrics must be a MetricRecord")
        update = None
        if kind == MessageType.TRAIN:
            delta = delta_of(reply)
            if task.local.clip:
                told = randomised(LocalUpdate(delta, examples=1, loss=0.0), task.local)
                delta, figures = told.delta, MetricRecord({"num-examples": told.examples, "loss": told.loss})
            update = encode_update(task, delta, tensors, state, client_number(context))
        return answer(message, figures, sent.model_id, update)

    return mod


def _as_record(values: FloatVector, layout: TensorLayout) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(view)) for name, view in layout.views(values).items()})


def _moved(reply: Message, moving: TensorLayout) -> FloatVector:
    """The moving tensors as the reply has them."""
    arrays = reply.content["arrays"]
    if not isinstance(arrays, ArrayRecord):
        raise TypeError("the reply's arrays must be an ArrayRecord")
    return moving.flatten({name: arrays[name].numpy() for name, _ in moving.shapes if name in arrays})


def _examples(reply: Message) -> int:
    """The reply's number of examples; it is what the update weighs, where updates are weighted."""
    figures = reply.content.get("metrics")
    examples = figures.get("num-examples", 1) if isinstance(figures, MetricRecord) else 1
    return examples if type(examples) is int else 0
