"""The training loop around a trainer: hooks, schedules, validation, early ends, and the callbacks that come with it."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge_runtime import losses, optimizers, schedules
from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.train import callbacks, checkpoint
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.loop import Callback, History, Loop
from edge_runtime.train.torch_trainer import TorchTrainer

LR = 0.1


def linear(lr: float = LR) -> TorchTrainer:
    torch.manual_seed(0)
    return TorchTrainer(nn.Linear(3, 2), optimizer=optimizers.SGD(lr, momentum=0.5))


def data(count: int = 20, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    return Examples(rng.normal(size=(count, 3)).astype(np.float32), rng.integers(0, 2, count))


class Scripted(TorchTrainer):
    """Reports these validation losses, one an epoch, and what was asked of it."""

    def __init__(self, validation_losses: list[float]) -> None:
        super().__init__(nn.Linear(3, 2))
        self.script = iter(validation_losses)

    def evaluate(self, batches: Any, metrics: Any = None) -> dict[str, float]:
        return {"loss": next(self.script), "accuracy": 0.5}


class Recorder(Callback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_start(self, loop: Loop) -> None:
        self.seen.append("start")

    def on_step(self, loop: Loop) -> None:
        self.seen.append(f"step {loop.epoch}.{loop.batch}")

    def on_epoch(self, loop: Loop) -> None:
        self.seen.append(f"epoch {loop.epoch}")

    def on_end(self, loop: Loop) -> None:
        self.seen.append("end")


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, loop: Loop) -> None:
        if loop.step == self.step:
            loop.stop("enough")


# The loop.


def test_hooks_come_in_order() -> None:
    recorder = Recorder()
    linear().fit(Batches(data(4), 2), 2, [recorder])
    assert recorder.seen == (
        "start,step 0.1,step 0.2,epoch 1,step 1.1,step 1.2,epoch 2,end".replace(",", "\n").splitlines()
    )


def test_a_stopped_training_makes_no_further_step_and_still_ends() -> None:
    recorder = Recorder()
    history = linear().fit(Batches(data(8), 2), 2, [StopAt(2), recorder])
    assert recorder.seen == ["start", "step 0.1", "step 0.2", "end"]
    assert (history.stopped, len(history.losses), history.examples, history.epochs) == ("enough", 2, 4, [])


def test_functions_and_callbacks_go_together() -> None:
    seen: list[tuple[int, float]] = []
    history = linear().fit(Batches(data(6), 2), 2, [Recorder(), lambda step, loss: seen.append((step, loss))])
    assert seen == list(enumerate(history.losses))


def test_a_schedule_scales_every_step_on_top_of_the_callers_factor() -> None:
    scales: list[float] = []
    trainer = linear()
    trainer.lr_scale = 0.5
    history = trainer.fit(
        Batches(data(6), 2),
        2,
        [lambda *_: scales.append(trainer.lr_scale)],
        schedule=schedules.Exponential(0.8),
    )
    np.testing.assert_allclose(scales, [0.5 * 0.8**step for step in range(6)], rtol=1e-12)
    assert [epoch.lr_scale for epoch in history.epochs] == pytest.approx([scales[2], scales[5]])
    assert trainer.lr_scale == 0.5


def test_training_under_a_schedule_is_pytorchs_under_its_own() -> None:
    torch.manual_seed(0)
    reference = nn.Linear(3, 2)
    sgd = torch.optim.SGD(reference.parameters(), LR, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(sgd, LR, 60, cycle_momentum=False)
    for _ in range(6):
        for x, y in Batches(data(), 2):
            sgd.zero_grad()
            nn.functional.cross_entropy(reference(torch.from_numpy(x)), torch.from_numpy(y)).backward()
            sgd.step()
            if scheduler.last_epoch < 59:
                scheduler.step()
    trainer = linear()
    trainer.fit(Batches(data(), 2), 6, schedule=schedules.OneCycle(60))
    np.testing.assert_allclose(trainer.state_dict()["weight"], reference.weight.detach().numpy(), rtol=1e-5)


def test_the_callers_factor_comes_back_after_an_error() -> None:
    def fail(step: int, loss: float) -> None:
        raise RuntimeError

    trainer = linear()
    with pytest.raises(RuntimeError):
        trainer.fit(Batches(data(), 5), callbacks=[fail], schedule=schedules.Constant(0.3))
    assert trainer.lr_scale == 1.0


def test_a_plateau_follows_the_validation_figure() -> None:
    scales: list[float] = []
    trainer = Scripted([3, 2, 2, 2, 2, 2])
    rule = schedules.ReduceOnPlateau(patience=1, gamma=0.5)
    trainer.fit([(data(4).x, data(4).y)], 6, [lambda *_: scales.append(trainer.lr_scale)], schedule=rule, validation=[])
    assert scales == [1, 1, 1, 1, 0.5, 0.5]


def test_without_validation_a_plateau_follows_the_training_loss() -> None:
    trainer = linear(lr=1e-12)  # never improves
    history = trainer.fit(Batches(data(), 5), 5, schedule=schedules.ReduceOnPlateau(patience=0, gamma=0.5))
    assert [epoch.lr_scale for epoch in history.epochs] == [1, 1, 0.5, 0.25, 0.125]


def test_epochs_hold_the_mean_training_loss_and_the_validation_figures() -> None:
    trainer = linear()
    history = trainer.fit(Batches(data(7), 3), 2, validation=Batches(data(9, 1), 4), metrics=["accuracy", "f1_macro"])
    assert [epoch.train_loss for epoch in history.epochs] == pytest.approx(
        [np.mean(history.losses[:3]), np.mean(history.losses[3:])]
    )
    assert history.epochs[-1].validation == trainer.evaluate(Batches(data(9, 1), 4), ["accuracy", "f1_macro"])
    assert history.epochs[-1].figure("train_loss") == history.epochs[-1].train_loss
    with pytest.raises(ConfigError, match="no figure is called 'acc'; this training measures loss, accuracy"):
        history.epochs[-1].figure("acc")


def test_an_epoch_without_batches_is_an_error_that_names_used_up_generators() -> None:
    with pytest.raises(ConfigError, match="no batches in epoch 1"):
        linear().fit([], 2)
    batches = Batches(data(4), 2)
    with pytest.raises(ConfigError, match=r"no batches in epoch 2; .* generator is used up"):
        linear().fit((batch for batch in batches), 2)


# Early stopping.


def epochs_run(script: list[float], **options: Any) -> History:
    trainer = Scripted(script)
    return trainer.fit([(data(4).x, data(4).y)], len(script), [callbacks.EarlyStopping(**options)], validation=[])


@pytest.mark.parametrize(
    ("script", "options", "epochs"),
    [
        ([3, 2, 1, 0.5], {"patience": 1}, 4),
        ([3, 2, 2, 1], {"patience": 1}, 3),
        ([3, 2, 2, 1, 1, 1], {"patience": 2}, 6),
        ([3, 2.9, 2.8, 0], {"patience": 2, "min_delta": 0.5}, 3),
        ([1, 2, 3, 4, 4], {"patience": 1, "mode": "max"}, 5),
        ([2, 1, 1, 1], {"patience": 2, "mode": "max"}, 3),
        ([math.nan, math.nan, 1, 2], {"patience": 2}, 2),
        ([math.nan, 2, 1, 0], {"patience": 2}, 4),
        ([2, math.nan, math.nan, 0], {"patience": 2}, 3),
    ],
)
def test_training_stops_after_so_many_epochs_without_improvement(
    script: list[float], options: dict[str, Any], epochs: int
) -> None:
    history = epochs_run(script, **options)
    assert len(history.epochs) == epochs
    if epochs < len(script):
        assert "loss did not improve" in history.stopped


def test_restoring_the_best_epoch_gives_its_weights_back() -> None:
    kept: list[bytes] = []

    class Keep(Callback):
        def on_epoch(self, loop: Loop) -> None:
            kept.append(loop.trainer.state_dict()["weight"].tobytes())

    trainer = Scripted([3, 1, 2, 2, 2])
    stopping = callbacks.EarlyStopping(patience=2, restore_best=True)
    history = trainer.fit([(data(4).x, data(4).y)], 5, [Keep(), stopping], validation=[])
    assert len(history.epochs) == len(set(kept)) == 4
    assert trainer.state_dict()["weight"].tobytes() == kept[1]


# Files.


def test_the_best_checkpoint_is_that_of_the_best_epoch(tmp_path: Path) -> None:
    trainer = Scripted([3, 1, 2, 1])
    trainer.fit([(data(4).x, data(4).y)], 4, [callbacks.BestCheckpoint(tmp_path / "best.ckpt")], validation=[])
    assert checkpoint.load(tmp_path / "best.ckpt").progress["epoch"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


def test_checkpoints_are_written_every_so_many_steps_after_all_other_callbacks_saw_them(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    steps: list[int] = []

    class Counts(Callback):
        count = 0

        def on_step(self, loop: Loop) -> None:
            self.count += 1
            steps.append(checkpoint.load(path).progress["callbacks"][0][1]["count"] if path.exists() else 0)

        def state(self) -> dict[str, Any]:
            return {"count": self.count}

    linear().fit(Batches(data(14), 2), 1, [callbacks.CheckpointEvery(path, 3), Counts()])
    assert steps == [0, 0, 0, 3, 3, 3, 6]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: callbacks.EarlyStopping(patience=0), "patience = 0"),
        (lambda: callbacks.EarlyStopping(mode="up"), "mode = 'up'"),
        (lambda: callbacks.EarlyStopping(min_delta=-1), "min_delta = -1"),
        (lambda: callbacks.CheckpointEvery("x", 0), "steps = 0"),
    ],
)
def test_bad_arguments_are_refused(make: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


def test_a_figure_that_nothing_measures_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no figure is called 'f1'; this training measures loss, train_loss"):
        linear().fit(Batches(data(), 5), 1, [callbacks.EarlyStopping("f1")])


# Progress.


def test_progress_is_one_plain_line_an_epoch_and_every_so_many_steps() -> None:
    out = io.StringIO()
    seconds = iter(range(100))
    progress = callbacks.Progress(out, every=2, clock=lambda: float(next(seconds)))
    linear().fit(Batches(data(8), 2), 2, [progress, StopAt(7)], validation=Batches(data(4), 2))
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["epoch 1/2", "step 2"],
        ["epoch 1/2", "step 4"],
        ["epoch 1/2", "step 4"],
        ["epoch 2/2", "step 6"],
        ["epoch 1/2", "step 7"],
    ]
    assert all(text in lines[2] for text in ("train loss", "val loss", "val accuracy", "lr x1", "3/s"))
    assert "stopped: enough" in lines[-1]
    assert out.getvalue().isascii()


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    linear().fit(Batches(data(4), 2), 1, [callbacks.Progress()])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


# TensorBoard.


def test_without_a_writer_the_error_holds_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # makes its import fail
    with pytest.raises(MissingPackageError, match="pip install tensorboardX"):
        callbacks.TensorBoard(tmp_path)


def test_tensorboard_is_given_every_scalar_and_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []

    class Writer:
        def __init__(self, directory: str, purge_step: int) -> None:
            calls.append((directory, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def flush(self) -> None:
            calls.append("flush")

        def close(self) -> None:
            calls.append("close")

    module = type(sys)("tensorboardX")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    history = linear().fit(Batches(data(4), 2), 1, [callbacks.TensorBoard(tmp_path)], validation=Batches(data(4), 2))
    (epoch,) = history.epochs
    assert calls == [
        (str(tmp_path), 1),
        *(
            row
            for n, loss in enumerate(history.losses, 1)
            for row in (("train/loss", loss, n), ("train/lr_scale", 1.0, n))
        ),
        *((f"validation/{name}", value, 2) for name, value in epoch.validation.items()),
        "flush",
        "close",
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # protobuf's, from inside tensorboardX
def test_tensorboard_files_hold_the_losses(tmp_path: Path) -> None:
    tensorboard_x = pytest.importorskip("tensorboardX", reason="pip install tensorboardX")
    history = linear().fit(Batches(data(6), 2), 2, [callbacks.TensorBoard(tmp_path)], validation=Batches(data(4), 2))
    (file,) = tmp_path.iterdir()
    read = {}
    with file.open("rb") as stream:
        while header := stream.read(12):
            event = tensorboard_x.proto.event_pb2.Event.FromString(stream.read(int.from_bytes(header[:8], "little")))
            stream.read(4)
            read |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    assert [read["train/loss", step] for step in range(1, 7)] == pytest.approx(history.losses, rel=1e-6)
    assert read["validation/loss", 6] == pytest.approx(history.epochs[1].validation["loss"], rel=1e-6)


def test_a_regression_is_validated_without_accuracy() -> None:
    trainer = TorchTrainer(nn.Linear(3, 1), loss=losses.MSE())
    rows = Examples(data(6).x, np.zeros((6, 1), np.float32))
    history = trainer.fit(Batches(rows, 3), validation=Batches(rows, 3), metrics=["mse", "mae"])
    figures = history.epochs[0].validation
    assert figures.keys() == {"loss", "mse", "mae"}
    assert figures["mse"] == pytest.approx(figures["loss"], rel=1e-6)
