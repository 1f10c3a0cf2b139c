"""One device's part by hand: train locally, pack the update, unpack it as a server would."""

import numpy as np

import edge_runtime as er
from edge_runtime.train.batches import Batches, Examples
from simulations.models import lenet


def main() -> None:
    rng = np.random.default_rng(0)
    examples = Examples(rng.normal(size=(64, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 64))
    trainer = er.TorchTrainer(lenet(), loss=er.CrossEntropy(), optimizer=er.SGD(lr=0.05, momentum=0.9))

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
