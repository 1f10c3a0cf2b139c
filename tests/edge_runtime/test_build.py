"""`build`: budgets that hold, splits that are exact, and a Program that trains as PyTorch trains the same recipe."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import edge_runtime as er
from edge_runtime import building
from edge_runtime.errors import BudgetError, ConfigError, UnsupportedOpError
from simulations import models

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning"),  # torch.export in torch.utils._pytree
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic:UserWarning"),
]

CLASSES = 4


class Apply(nn.Module):
    """A module from a function of (self, *inputs), with parts given by name."""

    def __init__(self, function, **members):
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def seeded(make):
    torch.manual_seed(0)
    return make()


def mlp() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, CLASSES)))


def convolutional() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(128, CLASSES),
        )
    )  # fmt: skip


def with_batch_norm() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, CLASSES),
        )
    )  # fmt: skip


def with_dropout() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, CLASSES))
    )


def recurrent() -> nn.Module:
    return seeded(
        lambda: Apply(
            lambda m, x: m.out(m.gru(m.embedding(x))[0]),
            embedding=nn.Embedding(CLASSES, 5),
            gru=nn.GRU(5, 6, batch_first=True),
            out=nn.Linear(6, CLASSES),
        )
    )


SHAPES = {mlp: (6,), convolutional: (2, 8, 8), with_batch_norm: (2, 8, 8), with_dropout: (6,), recurrent: (5,)}


def batches(make, rows: int, count: int = 1, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    if make is recurrent:
        return [(rng.integers(0, CLASSES, (rows, 5)), rng.integers(0, CLASSES, (rows, 5))) for _ in range(count)]
    return [
        (rng.standard_normal((rows, *SHAPES[make])).astype(np.float32), rng.integers(0, CLASSES, rows))
        for _ in range(count)
    ]


def build(module, make, **settings) -> er.Program:
    return er.build(module, batches(make, 2)[0][0], **settings)


@functools.cache
def shared(make) -> nn.Module:
    """For tests that leave the module as it is."""
    return make()


@pytest.fixture(autouse=True, scope="module")
def _each_shared_model_is_captured_once():
    """A capture takes most of a build's time."""
    capture_it, memo = building._captured, {}

    def captured(module, example_inputs):
        if not any(module is shared(make) for make in SHAPES):
            return capture_it(module, example_inputs)
        if module not in memo:
            found = capture_it(module, example_inputs)
            memo[module] = dataclasses.replace(found, check=functools.cache(found.check))
        return memo[module]

    building._captured = captured
    yield
    building._captured = capture_it


def assert_close(got, expected, tolerance=1e-5, what=()):
    assert got.keys() == expected.keys()
    for name in what or expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


# Budgets.


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [(1 << 20, 1 << 20), ("1 MiB", 1 << 20), ("1MiB", 1 << 20), ("1.5 mb", 1_500_000), (" 900 KB ", 900_000),
     ("900 KiB", 900 << 10), ("2 GiB", 2 << 30), ("2 GB", 2 * 10**9), ("1000000", 1_000_000), ("1000000 B", 1_000_000)],
)  # fmt: skip
def test_a_budget_is_a_number_of_bytes_or_a_text_with_a_unit(text, nbytes):
    assert build(shared(mlp), mlp, memory_budget=text).memory_budget == nbytes


@pytest.mark.parametrize("text", ["8 XB", "much", "", "-1", "1e6", "0", 0, -5, "nan", "8 MiB or so", True, [8]])
def test_another_budget_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="memory_budget"):
        build(shared(mlp), mlp, memory_budget=text)


@pytest.mark.parametrize(("make", "batch"), [(convolutional, 16), (with_batch_norm, 16), (recurrent, 8)])
def test_the_budget_that_the_error_names_works_and_one_byte_less_does_not(make, batch):
    module = shared(make)
    with pytest.raises(BudgetError) as refusal:
        build(module, make, batch_size=batch, memory_budget=1000)
    text = str(refusal.value)
    assert "what would help" in text
    smallest = int(re.search(r"\((\d+) bytes\)", text)[1])
    program = build(module, make, batch_size=batch, memory_budget=smallest)
    assert program.peak_bytes == smallest
    x, y = batches(make, batch)[0]
    assert np.isfinite(er.Trainer(program).step(x, y))
    with pytest.raises(BudgetError, match=f"{smallest} bytes"):
        build(module, make, batch_size=batch, memory_budget=smallest - 1)


def test_the_error_names_the_smallest_budget_where_only_the_long_search_finds_it():
    settings = {"batch_size": 16, "optimizer": er.SGD(0.05, momentum=0.5)}
    module, x = models.LeNet(), np.zeros((1, 1, 28, 28), np.float32)
    with pytest.raises(BudgetError) as refusal:
        er.build(module, x, memory_budget=1000, **settings)
    smallest = int(re.search(r"\((\d+) bytes\)", str(refusal.value))[1])
    assert er.build(module, x, memory_budget=smallest, **settings).peak_bytes == smallest
    with pytest.raises(BudgetError, match=f"{smallest} bytes"):
        er.build(module, x, memory_budget=smallest - 1, **settings)


def test_what_the_error_says_would_help_helps():
    module = with_batch_norm()
    smallest = min(p.peak_bytes for p in build(module, with_batch_norm, batch_size=32).report.curve)
    with pytest.raises(BudgetError) as refusal:
        build(module, with_batch_norm, batch_size=32, memory_budget=smallest - 1)
    for advice in ("GroupNorm, or BatchNorm", "smaller batch_size", 'trainable="auto"'):
        assert advice in str(refusal.value)
    assert build(module, with_batch_norm, batch_size=16, memory_budget=smallest - 1).peak_bytes < smallest
    last = build(module, with_batch_norm, batch_size=32, memory_budget=smallest - 1, trainable="auto")
    assert last.peak_bytes < smallest
    for part in (module[1], module[6]):
        part.eval()
    assert build(module, with_batch_norm, batch_size=32, memory_budget=smallest - 1).peak_bytes < smallest


def test_mobilenet_trains_batches_of_32_in_40_mb():
    program = er.build(seeded(models.MobileNetV2Small), np.zeros((1, 3, 32, 32), np.float32), memory_budget="40 MB")
    assert program.peak_bytes <= 40_000_000
    assert (program.batch_size, program.micro_batch) == (32, 32)
    x, y = np.random.default_rng(0).standard_normal((32, 3, 32, 32)).astype(np.float32), np.arange(32) % 10
    trainer = er.Trainer(program)
    assert trainer.step(x, y) > trainer.step(x, y)


# Splitting a batch.


@pytest.mark.parametrize("micro", [1, 3, 4, 7])
@pytest.mark.parametrize("make", [mlp, convolutional, with_dropout, recurrent])
def test_micro_batches_give_the_step_of_the_whole_batch(make, micro):
    module = shared(make)
    results = []
    for split in (8, micro):
        program = build(module, make, batch_size=8, micro_batch=split, optimizer=er.SGD(0.1, momentum=0.9))
        assert program.micro_batch == split
        trainer = er.Trainer(program, seed=7)
        losses = [trainer.step(x, y) for rows in (8, 5) for x, y in batches(make, rows, 3)]
        results.append({"losses": np.array(losses), **trainer.state_dict()})
    assert_close(results[1], results[0])


def test_micro_batches_divide_by_the_weights_of_the_whole_batch():
    loss = er.MultiTask((er.CrossEntropy(class_weights=(0.1, 1.0, 2.0, 5.0)), er.Focal()), learned=True)
    module = seeded(lambda: Apply(lambda m, x: (m.a(x), m.b(x)), a=nn.Linear(6, CLASSES), b=nn.Linear(6, CLASSES)))
    results = []
    for micro in (7, 2):
        program = build(module, mlp, loss=loss, batch_size=7, micro_batch=micro, clip_norm=0.5)
        trainer = er.Trainer(program)
        losses = [trainer.step(x, (y, y[::-1].copy())) for x, y in batches(mlp, 7, 5)]
        results.append({"losses": np.array(losses), **trainer.snapshot()})
    for name in results[0].keys() & results[1].keys():  # gradients are state only where they are gathered
        np.testing.assert_allclose(results[1][name], results[0][name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_batch_is_not_split_across_batch_norm_unless_that_is_asked_for():
    module = shared(with_batch_norm)
    free = build(module, with_batch_norm, batch_size=16)
    assert {point.micro_batch for point in free.report.curve} == {16}
    smallest = min(point.peak_bytes for point in free.report.curve)
    with pytest.raises(BudgetError):
        build(module, with_batch_norm, batch_size=16, memory_budget=smallest - 1)
    asked = build(module, with_batch_norm, batch_size=16, micro_batch=4, memory_budget=smallest - 1)
    assert asked.micro_batch == 4
    assert np.isfinite(er.Trainer(asked).step(*batches(with_batch_norm, 16)[0]))


@pytest.mark.parametrize("micro", [0, -1, 9, 1.5, True])
def test_a_micro_batch_outside_its_range_is_refused(micro):
    with pytest.raises(ConfigError, match="micro_batch"):
        build(shared(mlp), mlp, batch_size=8, micro_batch=micro)


# Fewer rows than the Program is for.


WEIGHTED = er.CrossEntropy(0.1, class_weights=(0.2, 1.0, 3.0, 0.7))


@pytest.mark.parametrize("rows", [3, 5, 8])
@pytest.mark.parametrize(("make", "loss"), [*((make, WEIGHTED) for make in SHAPES), (with_batch_norm, er.Focal())])
def test_a_short_batch_gives_what_a_program_for_so_many_rows_gives(make, loss, rows):
    results = []
    module = shared(make)
    for size in (8, rows):
        trainer = er.Trainer(build(module, make, batch_size=size, loss=loss), seed=4)
        for x, y in batches(make, 8, 1, seed=1) if size == 8 else []:
            trainer.evaluate([(x, y)])  # leave something in the rows that will be padding
        losses = [trainer.step(x, y) for x, y in batches(make, rows, 3)]
        results.append({"losses": np.array(losses), **trainer.state_dict()})
    # Batch norm over a few rows multiplies the rounding of the sums before it.
    assert_close(results[0], results[1], 1e-5 if make is with_batch_norm else 1e-6)


def test_a_short_batch_of_a_regression_counts_its_own_elements():
    module = shared(mlp)
    x, _ = batches(mlp, 3)[0]
    y = np.random.default_rng(1).standard_normal((3, CLASSES)).astype(np.float32)
    results = []
    for size in (8, 3):
        trainer = er.Trainer(build(module, mlp, batch_size=size, loss="huber"))
        results.append({"loss": np.array(trainer.step(x, y)), **trainer.state_dict()})
    assert_close(results[0], results[1], 1e-6)


def test_several_batch_sizes_share_one_program_and_its_weights():
    module = shared(with_batch_norm)
    many = build(module, with_batch_norm, batch_size=[2, 8, 4])
    assert [p.batch for p in many.phases if p.kind == "step"] == [2, 4, 8]
    assert many.batch_size == 8
    one = build(module, with_batch_norm, batch_size=8)
    trainers = er.Trainer(many), er.Trainer(one)
    for rows in (8, 3, 2, 5, 8):
        x, y = batches(with_batch_norm, rows)[0]
        losses = [trainer.step(x, y) for trainer in trainers]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    assert_close(trainers[0].state_dict(), trainers[1].state_dict())


@pytest.mark.parametrize("size", [0, -1, 1.5, "32", [], [4, 0], True, 10**7])
def test_a_batch_size_outside_its_range_is_refused(size):
    with pytest.raises(ConfigError, match="batch_size"):
        build(shared(mlp), mlp, batch_size=size)


@pytest.mark.parametrize("rows", [0, 9])
def test_a_batch_of_no_or_too_many_rows_is_refused(rows):
    trainer = er.Trainer(build(shared(mlp), mlp, batch_size=8))
    with pytest.raises(ValueError, match=f"a batch of {rows} rows"):
        trainer.step(*batches(mlp, rows)[0])


# Which weights are trained.


def moved(program, make) -> set[str]:
    trainer = er.Trainer(program)
    before = trainer.state_dict()
    for x, y in batches(make, 8, 2):
        trainer.step(x, y)
    after = trainer.state_dict()
    return {name for name in before if (before[name] != after[name]).any()}


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        (None, {"0.weight", "0.bias", "2.weight", "2.bias"}),
        (["2.bias"], {"2.bias"}),
        ("2.*", {"2.weight", "2.bias"}),
        (["*.bias", "0.weight"], {"0.bias", "2.bias", "0.weight"}),
    ],
)
def test_the_named_weights_move_and_no_others(trainable, expected):
    program = build(shared(mlp), mlp, batch_size=8, trainable=trainable)
    assert {one.tensor.name for one in program.state if one.trained} == expected
    assert moved(program, mlp) == expected


def test_weights_that_need_no_gradient_stay():
    module = mlp()
    module[0].weight.requires_grad_(False)
    assert moved(build(module, mlp, batch_size=8), mlp) == {"0.bias", "2.weight", "2.bias"}


def test_fewer_trained_weights_take_less_memory():
    module = shared(convolutional)
    peaks = [build(module, convolutional, trainable=names).peak_bytes for names in (None, ["4.*", "7.*"], ["7.bias"])]
    assert peaks[0] > peaks[1] >= peaks[2]


@pytest.mark.parametrize("trainable", ["nothing", ["0.weight", "gone.*"]])
def test_an_unknown_weight_is_refused_with_the_names_there_are(trainable):
    with pytest.raises(ConfigError, match=re.escape("0.weight, 0.bias, 2.weight, 2.bias")):
        build(shared(mlp), mlp, trainable=trainable)


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build(nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES).requires_grad_(False)), mlp)


def test_auto_trains_everything_that_fits_and_the_rest_stays():
    module = shared(with_batch_norm)
    count = len(list(module.parameters()))
    free = build(module, with_batch_norm, batch_size=32, trainable="auto")
    assert free.report.chosen.trained_tensors == count
    smallest = min(point.peak_bytes for point in free.report.curve)
    tight = build(module, with_batch_norm, batch_size=32, trainable="auto", memory_budget=smallest - 1)
    assert tight.peak_bytes < smallest
    trained = {one.tensor.name for one in tight.state if one.trained}
    assert 0 < len([name for name in trained if "running" not in name]) < count
    counters = {name for name in module.state_dict() if "tracked" in name}
    assert moved(tight, with_batch_norm) - counters == trained
    with pytest.raises(BudgetError):
        build(module, with_batch_norm, batch_size=32, trainable="auto", memory_budget=2000)


# The same recipe in PyTorch.

ALL_OPTIMIZERS = {
    "sgd": er.SGD(0.1),
    "sgd, momentum": er.SGD(0.05, momentum=0.9, weight_decay=1e-2),
    "sgd, nesterov": er.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": er.Adam(1e-2, weight_decay=1e-2),
    "adamw": er.AdamW(1e-2),
    "rmsprop": er.RMSprop(1e-3),
    "rmsprop, momentum": er.RMSprop(1e-3, momentum=0.9, weight_decay=1e-2, eps=1e-4),
    "adagrad": er.Adagrad(1e-2, weight_decay=1e-2),
}


def both_trainers(module, make, rows=8, steps=24, micro=None, tolerance=1e-5, correction=None, **recipe):
    program = build(module, make, batch_size=rows, micro_batch=micro, correction=correction is not None, **recipe)
    recipe.pop("trainable", None)
    ours, theirs = er.Trainer(program), er.TorchTrainer(copy.deepcopy(module), **recipe)
    if correction is not None:
        for trainer in (ours, theirs):
            trainer.set_correction(correction)
    data = batches(make, rows, steps)
    losses = [(ours.step(x, y), theirs.step(x, y)) for x, y in data]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4, atol=1e-5)
    assert_close(ours.state_dict(), theirs.state_dict(), tolerance)
    return ours, theirs


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("name", ALL_OPTIMIZERS)
def test_every_optimizer_moves_the_weights_as_pytorch_does(name, micro):
    both_trainers(shared(mlp), mlp, steps=50, optimizer=ALL_OPTIMIZERS[name], micro=micro)


@pytest.mark.parametrize("make", [convolutional, with_batch_norm, recurrent])
def test_models_train_as_in_pytorch(make):
    both_trainers(shared(make), make, optimizer=er.SGD(0.05, momentum=0.5))


EXTRAS = {
    "clip_value": {"clip_value": 0.01},
    "clip_norm": {"clip_norm": 0.1},
    "both clips": {"clip_value": 0.02, "clip_norm": 0.05},
    "proximal_mu": {"proximal_mu": 0.5},
    "proximal_mu and clips": {"proximal_mu": 0.5, "clip_value": 0.02, "clip_norm": 0.05},
}


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("extra", EXTRAS)
def test_clipping_and_the_proximal_term_are_those_of_the_torch_trainer(extra, micro):
    both_trainers(shared(mlp), mlp, micro=micro, optimizer=er.SGD(0.1, momentum=0.9), **EXTRAS[extra])


@pytest.mark.parametrize("micro", [None, 3])
def test_a_correction_is_added_to_the_gradient_before_it_is_clipped(micro):
    module, rng = shared(mlp), np.random.default_rng(3)
    correction = {n: rng.standard_normal(tuple(p.shape)).astype(np.float32) for n, p in module.named_parameters()}
    both_trainers(module, mlp, micro=micro, correction=correction, clip_norm=0.3)
    both_trainers(module, mlp, micro=micro, correction={"2.bias": correction["2.bias"]}, proximal_mu=0.1)


@pytest.mark.parametrize("name", ["proximal_mu", "clip_value", "clip_norm"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_bound_outside_its_range_is_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        build(shared(mlp), mlp, **{name: value})


def test_a_learned_multi_task_loss_trains_as_in_pytorch():
    loss = er.MultiTask((er.CrossEntropy(), er.Huber()), weights=(1.0, 0.5), learned=True)
    module = seeded(lambda: Apply(lambda m, x: (m.a(x), m.b(x)), a=nn.Linear(6, CLASSES), b=nn.Linear(6, 2)))
    program = build(module, mlp, loss=loss, batch_size=8, optimizer=er.Adam(1e-2))
    ours, theirs = er.Trainer(program), er.TorchTrainer(copy.deepcopy(module), loss=loss, optimizer=er.Adam(1e-2))
    second = np.random.default_rng(2).standard_normal((8, 2)).astype(np.float32)
    for x, y in batches(mlp, 8, 24):
        np.testing.assert_allclose(ours.step(x, (y, second)), theirs.step(x, (y, second)), rtol=1e-4)
    assert_close(ours.state_dict(), theirs.state_dict())
    key = "loss.log_variances"
    np.testing.assert_allclose(ours.snapshot()[key], theirs.snapshot()[key], rtol=1e-4, atol=1e-6)


def test_predictions_are_those_of_pytorch_for_any_number_of_rows():
    for make in (with_batch_norm, recurrent, with_dropout):
        module = shared(make)
        ours, theirs = er.Trainer(build(module, make, batch_size=8)), er.TorchTrainer(copy.deepcopy(module))
        if make is not with_dropout:  # whose masks are others in PyTorch
            for x, y in batches(make, 8, 3):
                ours.step(x, y)
                theirs.step(x, y)
        for rows in (1, 8, 13):
            x, y = batches(make, rows)[0]
            np.testing.assert_allclose(ours.predict(x), theirs.predict(x), rtol=1e-4, atol=1e-5)
            got, expected = ours.evaluate([(x, y)]), theirs.evaluate([(x, y)])
            np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-4)
            assert got["accuracy"] == expected["accuracy"]


# Models with edges.


def test_a_frozen_batch_norm_keeps_its_statistics_and_lets_a_batch_be_split():
    module = with_batch_norm()
    with torch.no_grad():
        module[1].running_mean += 0.3
        module[6].running_var *= 2
    module[1].eval()
    module[6].eval()
    program = build(module, with_batch_norm, batch_size=8, micro_batch=3)
    trainer = er.Trainer(program)
    x, y = batches(with_batch_norm, 8)[0]
    twin = copy.deepcopy(module)  # its parts stay in the mode they are in, where TorchTrainer would start them all
    expected = functional.cross_entropy(twin(torch.from_numpy(x)), torch.from_numpy(y))
    expected.backward()
    np.testing.assert_allclose(trainer.step(x, y), expected.item(), rtol=1e-5)
    state = trainer.state_dict()
    for name, parameter in twin.named_parameters():
        np.testing.assert_allclose(state[name], (parameter - 0.05 * parameter.grad).detach(), rtol=1e-4, atol=1e-6)
    for name in (
        f"{layer}.{kind}" for layer in (1, 6) for kind in ("running_mean", "running_var", "num_batches_tracked")
    ):
        np.testing.assert_array_equal(state[name], module.state_dict()[name])


def test_a_module_in_evaluation_mode_is_captured_in_training_mode_and_left_as_it_was():
    module = with_batch_norm().eval()
    program = build(module, with_batch_norm, batch_size=8)
    assert not any(part.training for part in module.modules())
    trainer, rival = er.Trainer(program), er.TorchTrainer(copy.deepcopy(module))
    for x, y in batches(with_batch_norm, 8, 3):
        np.testing.assert_allclose(trainer.step(x, y), rival.step(x, y), rtol=1e-5)
    assert_close(trainer.state_dict(), rival.state_dict())


class WithSpares(nn.Module):
    """A parameter, a buffer and a counter that the forward pass does not use, beside some that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES))
        self.spare = nn.Linear(3, 2)
        self.register_buffer("table", torch.arange(4.0))
        self.register_buffer("epoch", torch.tensor(17))

    def forward(self, x):
        return self.used(x)


def test_what_the_forward_pass_does_not_use_is_still_in_the_state_dict():
    module = seeded(WithSpares)
    trainer = er.Trainer(build(module, mlp, batch_size=8))
    for x, y in batches(mlp, 8, 3):
        trainer.step(x, y)
    state = trainer.state_dict()
    assert list(state) == list(module.state_dict())
    for name in ("spare.weight", "spare.bias", "table"):
        np.testing.assert_array_equal(state[name], module.state_dict()[name])
    assert state["used.1.num_batches_tracked"] == 3
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})


def test_a_counter_that_does_not_count_batches_keeps_its_value():
    trainer = er.Trainer(build(seeded(WithSpares), mlp, batch_size=8, trainable="used.*"))
    for x, y in batches(mlp, 8, 3):
        trainer.step(x, y)
    assert trainer.state_dict()["epoch"] == 17


@pytest.mark.parametrize("micro", [None, 8, 3])
def test_a_weight_that_is_not_used_is_not_moved(micro):
    module = seeded(lambda: Apply(lambda m, x: m.a(x), a=nn.Linear(6, CLASSES), spare=nn.Linear(3, 2)))
    program = build(module, mlp, batch_size=8, micro_batch=micro, optimizer=er.SGD(0.1, weight_decay=0.1))
    assert moved(program, mlp) == {"a.weight", "a.bias"}


def test_tied_weights_are_one_weight_under_two_names():
    def make():
        module = Apply(
            lambda m, x: m.out(m.embedding(x)), embedding=nn.Embedding(4, 6), out=nn.Linear(6, 4, bias=False)
        )
        module.out.weight = module.embedding.weight
        return module

    module = seeded(make)
    x = np.random.default_rng(0).integers(0, 4, (8, 5))
    trainer, rival = er.Trainer(er.build(module, x, batch_size=8)), er.TorchTrainer(copy.deepcopy(module))
    for _ in range(3):
        np.testing.assert_allclose(trainer.step(x, x), rival.step(x, x), rtol=1e-5)
    assert_close(trainer.state_dict(), rival.state_dict())


def test_a_batch_norm_that_is_used_twice_moves_its_statistics_twice_or_is_refused_with_a_reason():
    module = seeded(
        lambda: Apply(lambda m, x: m.out(m.norm(m.norm(x) + 1)), norm=nn.BatchNorm1d(6), out=nn.Linear(6, 4))
    )
    try:
        program = build(module, mlp, batch_size=8)
    except UnsupportedOpError as error:
        assert "batch norm" in str(error)  # noqa: PT017  either is right
        return
    trainer, rival = er.Trainer(program), er.TorchTrainer(copy.deepcopy(module))
    for x, y in batches(mlp, 8, 3):
        trainer.step(x, y)
        rival.step(x, y)
    assert_close(trainer.state_dict(), rival.state_dict())


def test_a_weight_may_be_read_through_views():
    module = seeded(
        lambda: Apply(
            lambda m, x: m.l(x) + m.p.view(3, 4).relu().view(4, 3)[:, 0] * m.p.view(3, 4).view(4, 3)[:, 0].sigmoid(),
            p=nn.Parameter(torch.randn(12)), l=nn.Linear(6, 4),
        )
    )  # fmt: skip
    both_trainers(module, mlp, steps=5)


def test_two_inputs_are_given_as_a_tuple():
    module = seeded(lambda: Apply(lambda m, x, t: m.a(x) + m.b(t).mean(1), a=nn.Linear(6, 4), b=nn.Embedding(9, 4)))
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((5, 6)).astype(np.float32), rng.integers(0, 9, (5, 3))
    y = rng.integers(0, 4, 5)
    trainer = er.Trainer(er.build(module, (x, t), batch_size=8))
    expected = functional.cross_entropy(module(torch.from_numpy(x), torch.from_numpy(t)), torch.from_numpy(y))
    expected.backward()
    np.testing.assert_allclose(trainer.step((x, t), y), expected.item(), rtol=1e-5)
    for name, parameter in module.named_parameters():
        updated = (parameter - 0.05 * parameter.grad).detach()
        np.testing.assert_allclose(trainer.state_dict()[name], updated, rtol=1e-4, atol=1e-6)
    assert trainer.predict((x, t)).shape == (5, 4)
    with pytest.raises(ValueError, match="1 inputs, the model takes 2"):
        trainer.step(x, y)


def for_five_rows() -> nn.Module:
    return seeded(lambda: Apply(lambda m, x: m.l(x) + m.p, l=nn.Linear(6, 4), p=nn.Parameter(torch.randn(5, 4))))


def test_a_model_for_one_batch_size_works_at_that_size():
    module = for_five_rows()
    x, y = batches(mlp, 5)[0]
    trainer, rival = er.Trainer(er.build(module, x, batch_size=5)), er.TorchTrainer(copy.deepcopy(module))
    for _ in range(3):
        np.testing.assert_allclose(trainer.step(x, y), rival.step(x, y), rtol=1e-5)
    assert_close(trainer.state_dict(), rival.state_dict())


def test_a_model_for_one_batch_size_is_refused_at_another():
    with pytest.raises(UnsupportedOpError, match="only works for batches of 5"):
        er.build(for_five_rows(), batches(mlp, 5)[0][0], batch_size=4)


DEPENDENT = {
    "loops over its rows": (lambda m, x: functools.reduce(lambda y, _: m.l(y), range(len(x)), x), "batch size"),
    "computes with its size": (lambda m, x: m.l(x) * len(x), "batch size"),
    "branches on its size": (lambda m, x: m.l(x) if len(x) < 8 else -m.l(x), "batch"),
    "takes its first four rows": (lambda m, x: m.l(x)[:4], "batch"),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_graph_that_depends_on_the_batch_size_is_refused(name):
    function, why = DEPENDENT[name]
    module = seeded(lambda: Apply(function, l=nn.Linear(6, 6)))
    with pytest.raises(UnsupportedOpError, match=why):
        er.build(module, np.zeros((16, 6), np.float32), batch_size=16)


MIXING = {
    "a mean over rows": lambda m, x: m.l(x) - m.l(x).mean(0, keepdim=True),
    "a softmax over rows": lambda m, x: m.l(x).softmax(0),
    "a reshape that cuts through rows": lambda m, x: m.l(x).reshape(6, -1).softmax(1).reshape(-1, 6),
    "a convolution with weights made of the batch": lambda m, x: functional.conv2d(
        m.l(x).reshape(-1, 1, 2, 3), m.l(x).reshape(-1, 1, 2, 3)
    ).flatten(1),
    "dropout of a weight": lambda m, x: functional.linear(x, functional.dropout(m.l.weight, 0.5)),
    "attention between rows": lambda m, x: functional.scaled_dot_product_attention(m.l(x), m.l(x), x),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_model_that_mixes_rows_is_refused_or_given_short_and_split_batches_exactly(name):
    module = seeded(lambda: Apply(MIXING[name], l=nn.Linear(6, 6)))
    x, y = batches(mlp, 5)[0][0], np.array([0, 1, 2, 3, 4])
    rival = er.TorchTrainer(copy.deepcopy(module))
    if "convolution" in name:
        y = y % 5
    expected = rival.step(x, y)
    for settings in ({"batch_size": 8}, {"batch_size": 5, "micro_batch": 2}):
        try:
            program = er.build(module, x, **settings)
        except UnsupportedOpError:
            continue
        np.testing.assert_allclose(er.Trainer(program).step(x, y), expected, rtol=1e-5, err_msg=str(settings))


REFUSED = {
    "an unknown loss": ({"loss": "hinge"}, ConfigError, "cross_entropy"),
    "a loss class": ({"loss": er.MSE}, ConfigError, "loss"),
    "a loss for two outputs": ({"loss": er.MultiTask((er.MSE(), er.MSE()))}, UnsupportedOpError, "2 outputs"),
    "weights for other classes": ({"loss": er.CrossEntropy(class_weights=(1.0,))}, UnsupportedOpError, "class weights"),
    "a rate that is no number": ({"optimizer": er.SGD(float("nan"))}, ConfigError, "lr"),
    "an optimizer by name": ({"optimizer": "sgd"}, ConfigError, "optimizer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_built_is_refused_at_once(name):
    settings, error, why = REFUSED[name]
    with pytest.raises(error, match=why):
        build(shared(mlp), mlp, **settings)


def by_hand(m, x):
    h = torch.zeros(x.shape[0], 6)
    for t in range(x.shape[1]):
        h = torch.tanh(m.l(x[:, t]) + h)
    return m.l(h.float().to(x.device))


def with_token(m, x):
    return m.l(torch.cat([m.l.bias.view(1, 1, 6).expand(len(x), -1, -1), x], 1))[:, 0]


def small_functions(m, x):
    return torch.stack([m.l(x) ** 2, -m.l(x)], 1).sum(1).unflatten(1, (2, 3)).flatten(1).clamp(min=0) + 1.0


def time_first(m, x):
    return m.l(torch.tanh(m.l(x.transpose(0, 1)).reshape(-1, 6)).view(x.shape[1], -1, 6) + m.l.bias).transpose(0, 1)[
        :, -1
    ]


INDEPENDENT = {
    "time in front of the batch, and merged with it": (time_first, (8, 3, 6)),
    "a recurrent net by hand": (by_hand, (8, 3, 6)),
    "a token in front of every row": (with_token, (8, 3, 6)),
    "stacks, squares, sums and views": (small_functions, (8, 6)),
    "a part that no gradient enters": (lambda m, x: m.l(m.l(x).detach() * 2 + x), (8, 6)),
    "an activation in place": (lambda m, x: functional.relu(m.l(x), inplace=True) + 0.5, (8, 6)),
}


def beside_pytorch(module, x, y):
    """The engine's trainer and PyTorch's after three equal steps: on whole batches, short ones and split ones."""
    for rows, settings in ((8, {}), (5, {}), (8, {"micro_batch": 3})):
        trainer, rival = (
            er.Trainer(er.build(module, x, batch_size=8, **settings)),
            er.TorchTrainer(copy.deepcopy(module)),
        )
        for _ in range(3):
            np.testing.assert_allclose(trainer.step(x[:rows], y[:rows]), rival.step(x[:rows], y[:rows]), rtol=1e-5)
        assert_close(trainer.state_dict(), rival.state_dict())
        yield trainer, rival


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_model_of_independent_rows_trains_as_in_pytorch_whole_short_and_split(name):
    function, shape = INDEPENDENT[name]
    module = seeded(lambda: Apply(function, l=nn.Linear(6, 6)))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(shape).astype(np.float32), rng.integers(0, 6, 8)
    assert len(list(beside_pytorch(module, x, y))) == 3


def test_pytorchs_own_transformer_layer_trains_whole_short_and_split():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    module = seeded(lambda: Apply(lambda m, x: m.o(m.e(x)[:, 0]), e=layer, o=nn.Linear(8, CLASSES)))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 5, 8)).astype(np.float32), rng.integers(0, CLASSES, 8)
    for trainer, rival in beside_pytorch(module, x, y):
        np.testing.assert_allclose(trainer.predict(x), rival.predict(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("check_numerics", [False, True])
def test_a_step_that_fails_half_way_leaves_nothing_behind(check_numerics):
    module = shared(recurrent)
    program = build(module, recurrent, batch_size=8, micro_batch=4)
    hurt, fresh = (er.Trainer(program, check_numerics=check_numerics) for _ in range(2))
    x, y = batches(recurrent, 8)[0]
    bad = x.copy()
    bad[6, 2] = 99
    with pytest.raises(ValueError, match="outside its table"):
        hurt.step(bad, y)
    assert hurt.step(x, y) == fresh.step(x, y)
    for name, value in fresh.state_dict().items():
        np.testing.assert_array_equal(hurt.state_dict()[name], value)


def test_every_input_must_have_the_same_rows():
    module = seeded(lambda: Apply(lambda m, a, b: m.l(a) + m.l(b), l=nn.Linear(6, 4)))
    x, y = np.zeros((8, 6), np.float32), np.zeros(8, np.int64)
    trainer = er.Trainer(er.build(module, (x, x), batch_size=8))
    for rows in (1, 5, 16):
        with pytest.raises(ValueError, match="for 8 rows"):
            trainer.step((x, np.zeros((rows, 6), np.float32)), y)


def test_names_of_the_engine_may_be_inputs_and_are_refused_as_parameters():
    x, y = batches(mlp, 8)[0]
    module = seeded(lambda: Named())
    trainer, rival = er.Trainer(er.build(module, x, batch_size=8)), er.TorchTrainer(copy.deepcopy(module))
    np.testing.assert_allclose(trainer.step(x, y), rival.step(x, y), rtol=1e-6)
    module.lr = nn.Parameter(torch.ones(CLASSES))
    with pytest.raises(UnsupportedOpError, match="own 'lr'"):
        er.build(module, x, batch_size=8)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, CLASSES)
        self.lr = 1.0
        self.rows = 0

    def forward(self, rows):
        return self.out(rows) * self.lr


REFUSED_NUMBERS = {
    "label_smoothing": er.CrossEntropy(1.5),
    "class_weights": er.CrossEntropy(class_weights=(-1.0, 1.0, 1.0, 1.0)),
    "gamma": er.Focal(-1.0),
    "temperature": er.KLDivergence(0.0),
    "delta": er.Huber(float("nan")),
    "MultiTask": er.MultiTask((er.MSE,)),
}


@pytest.mark.parametrize("number", REFUSED_NUMBERS)
def test_a_loss_outside_its_range_is_refused(number):
    with pytest.raises(ConfigError, match=number):
        build(shared(mlp), mlp, loss=REFUSED_NUMBERS[number])


def test_an_infinite_weight_is_found_by_check_numerics_and_taken_back():
    x, y = batches(mlp, 8)[0]
    program = er.build(seeded(lambda: nn.Linear(6, CLASSES)), x, batch_size=8, optimizer=er.SGD(1e29))
    trainer = er.Trainer(program, check_numerics=True)
    before = trainer.state_dict()
    with pytest.raises(er.NumericsError, match="step 0"):
        trainer.step(x * np.float32(1e12), y)
    for name, value in before.items():
        np.testing.assert_array_equal(trainer.state_dict()[name], value)
    trainer.lr_scale = float("nan")
    with pytest.raises(ConfigError, match="lr_scale"):
        trainer.step(x, y)
