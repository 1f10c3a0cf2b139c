"""One device's part by hand: plan the training on a server, train on the device, pack the update, unpack it again."""

import tempfile
from pathlib import Path

import numpy as np

import edge_runtime as er
from edge_runtime.train.batches import Batches, Examples
from simulations.models import lenet


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(build(Path(folder) / "lenet.program"))


def build(path: Path) -> Path:
    """On the server, with PyTorch: a model becomes a file that says how to train it in 1 MiB."""
    program = er.build(
        lenet(),
        np.zeros((1, 1, 28, 28), np.float32),
        loss="cross_entropy",
        optimizer=er.SGD(lr=0.05, momentum=0.9),
        batch_size=16,
        memory_budget="1 MiB",
    )
    print(program.explain())
    return program.save(path)


def train(path: Path) -> None:
    """On the device, with NumPy and the native core alone."""
    rng = np.random.default_rng(0)
    examples = Examples(rng.normal(size=(64, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 64))
    trainer = er.Trainer(er.Program.load(path))

    before = trainer.state_dict()
    history = trainer.fit(Batches(examples, batch_size=16, rng=rng), epochs=3)
    after = trainer.state_dict()
    delta = {name: after[name] - before[name] for name in before}
    print(f"{len(history.losses)} steps, loss {history.losses[0]:.3f} -> {history.losses[-1]:.3f}")

    codec = er.updates.make_codec("float32")
    payload = codec.encode(delta)
    received = codec.decode(payload, like=delta)
    assert all(np.array_equal(received[name], delta[name]) for name in delta)
    print(f"{len(payload):,} bytes for {sum(value.size for value in delta.values()):,} parameters")


if __name__ == "__main__":
    main()
