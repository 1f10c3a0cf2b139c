"""A federation that sends what its models say instead of their weights, so every client may have a model of its own.

Five clients hold different kinds of digits and two kinds of models, too different to be averaged. In every round each
trains on its own digits, with the engine, and says its logits on 600 public digits that nobody has labelled. The server
teaches its own model the mean of what they say (FedDF, Lin et al. 2020), and the clients learn from it too (FedMD, Li
and Wang 2019). No weight and no private digit leaves a client.
"""

import numpy as np
import torch
from torch import nn

import edge_runtime as er
from edge_runtime import plugins
from edge_runtime.deploy.compress.distil import distil, mean_logits, student
from edge_runtime.deploy.compress.finetune import Tuning, finetune
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import DATASETS, DataConfig
from simulations.models import digits_cnn

CLIENTS, PUBLIC, ROUNDS = 5, 600, 3


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def main() -> None:
    torch.manual_seed(1)
    public, private, test = load()
    models = [student((digits_cnn, perceptron)[k % 2](), public[:1]) for k in range(CLIENTS)]
    alone = [finetune(model, own, Tuning(epochs=30, lr=3e-3)) for model, own in zip(models, private, strict=True)]
    before = [accuracy(model, test) for model in alone]

    served = student(digits_cnn(), public[:1])
    codec = er.updates.make_codec("float16")
    like = {"logits": np.zeros((PUBLIC, 10), np.float32)}
    for number in range(1, ROUNDS + 1):
        said, sent = [], 0
        for k, own in enumerate(private):
            models[k] = finetune(models[k], own, Tuning(epochs=10, lr=3e-3, seed=number))
            payload = codec.encode({"logits": predict(models[k], public)})
            said.append(codec.decode(payload, like=like)["logits"])  # PeerError on anything malformed
            sent += len(payload)
        consensus = mean_logits(said, [len(own) for own in private], centred=True)
        served = distil(served, consensus, public, Tuning(epochs=15, lr=3e-3, seed=number))
        models = [distil(model, consensus, public, Tuning(epochs=15, lr=3e-3, seed=number)) for model in models]
        print(f"round {number}: {sent:,} bytes up, server's model {accuracy(served, test):.3f}")
    print(
        f"clients alone {min(before):.3f} to {max(before):.3f}; "
        f"clients after {ROUNDS} rounds {min(accuracy(one, test) for one in models):.3f} or better; "
        f"server {accuracy(served, test):.3f}"
    )


def load() -> tuple[np.ndarray, list[Examples], Examples]:
    """Public inputs, each client's own digits (six kinds each), and the held-out ones."""
    source = plugins.load(DATASETS, "digits")
    data = DataConfig(name="digits", clients=1, partition="iid")
    train = source.client_split(data, 1, 0)
    rest = train.rows(slice(PUBLIC, None))
    kinds = [[(2 * k + i) % 10 for i in range(6)] for k in range(CLIENTS)]
    shares = [np.flatnonzero(np.isin(rest.y, mine))[k::3] for k, mine in enumerate(kinds)]
    return np.asarray(train.x[:PUBLIC]), [rest.rows(rows) for rows in shares], source.test_split(data, 1)


def accuracy(model: FloatModel, test: Examples) -> float:
    return float((predict(model, test.x).argmax(1) == test.y).mean())


if __name__ == "__main__":
    main()
