"""What training gives back: fine-tuning, distillation, federated distillation, and the search that uses them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from torch import nn

from edge_runtime import plugins
from edge_runtime.deploy.compress.channels import prune_channels
from edge_runtime.deploy.compress.distil import LARGEST_LOGIT, distil, mean_logits, student
from edge_runtime.deploy.compress.finetune import Tuning, finetune
from edge_runtime.deploy.compress.prune import prune, sparsity
from edge_runtime.deploy.compress.report import as_json, before_after
from edge_runtime.deploy.compress.search import Effort, Goal, SearchError, Tried, search
from edge_runtime.deploy.exporter import export
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.quantise import quantise
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.deploy.runner import Runner
from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.losses import MSE
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import DATASETS, DataConfig, ModelConfig
from edge_runtime.train.factory import make_module

QUICK = Effort(epochs=(1, 2), survivors=(4, 1))


@functools.cache
def digits() -> tuple[Examples, Examples]:
    source = plugins.load(DATASETS, "digits")
    data = DataConfig(name="digits", clients=1, partition="iid")
    return source.client_split(data, 1, 0), source.test_split(data, 1)


def fresh() -> FloatModel:
    return student(make_module(ModelConfig(name="digits_cnn"), 0), digits()[0].x[:1])


@functools.cache
def trained() -> FloatModel:
    return finetune(fresh(), digits()[0], Tuning(epochs=12, lr=3e-3), threads=1)


def right(model: FloatModel, test: Examples) -> float:
    return float((predict(model, test.x).argmax(1) == test.y).mean())


def test_training_from_scratch_learns_and_is_repeatable():
    train, test = digits()
    assert right(fresh(), test) < 0.3
    assert right(trained(), test) > 0.95
    twice = [finetune(fresh(), train, Tuning(seed=3), threads=n) for n in (1, 2)]
    assert all(np.array_equal(w, twice[1].weights[name]) for name, w in twice[0].weights.items())


def test_fine_tuning_wins_back_what_pruning_cost():
    train, test = digits()
    pruned = prune_channels(trained(), 0.5)
    tuned = finetune(pruned, train, Tuning(epochs=2), threads=1)
    assert right(pruned, test) < right(tuned, test)
    assert right(tuned, test) > right(trained(), test) - 0.04


@pytest.mark.parametrize("bits", [0, 4])
def test_zeros_stay_zero_unless_they_may_move(bits: int):
    train, _ = digits()
    few = train.rows(slice(320))
    pruned = prune(trained(), 0.8)
    kept = finetune(pruned, few, Tuning(weight_bits=bits), threads=1)
    for name, w in pruned.weights.items():
        if w.ndim >= 2:
            assert np.array_equal(w == 0, kept.weights[name] == 0), name
            assert not np.array_equal(w, kept.weights[name]), name
    assert sparsity(finetune(pruned, few, Tuning(keep_zeros=False), threads=1)) < 0.5


def test_rounding_in_training_saves_weights_of_two_bits():
    train, test = digits()
    plain = finetune(trained(), train, Tuning(epochs=2), threads=1)
    tuned = finetune(trained(), train, Tuning(epochs=2, weight_bits=2), threads=1)
    both = [quantise(one, {}, weight_bits=2, activations=False) for one in (plain, tuned)]
    without, with_ = ((predict_rounded(one, test.x).argmax(1) == test.y).mean() for one in both)
    assert with_ > without + 0.05
    assert with_ > 0.85


def test_a_teacher_helps_a_small_student_with_few_labels():
    """120 labels, and the teacher's word on 1,300 unlabelled digits."""
    train, test = digits()
    small = prune_channels(fresh(), 0.5)
    few = train.rows(slice(120))
    alone = finetune(small, few, Tuning(epochs=30), threads=1)
    taught = distil(small, trained(), train.x, Tuning(epochs=6, lr=3e-3))
    assert right(taught, test) > right(alone, test) + 0.02


def test_a_teachers_logits_are_as_good_as_the_teacher():
    train, _ = digits()
    few = train.rows(slice(64))
    said = predict(trained(), few.x)
    both = [finetune(fresh(), few, Tuning(), teacher=one, threads=1) for one in (trained(), said)]
    assert all(np.array_equal(w, both[1].weights[name]) for name, w in both[0].weights.items())
    with pytest.raises(ConfigError, match="logits are for 63 examples, there are 64"):
        finetune(fresh(), few, teacher=said[1:])
    with pytest.raises(ConfigError, match="not with MSE"):
        finetune(fresh(), few, teacher=said, loss=MSE())


def test_the_mean_of_clients_logits_is_weighted():
    said = [np.full((2, 3), one, np.float32) for one in (1.0, 4.0)]
    np.testing.assert_allclose(mean_logits(said), 2.5)
    np.testing.assert_allclose(mean_logits(said, [2, 1]), 2.0)
    for weights in ([1.0], [0.0, 0.0], [1.0, -1.0], [1.0, np.inf]):
        with pytest.raises(ConfigError, match="weights of 2 clients"):
            mean_logits(said, weights)


@pytest.mark.parametrize(
    "hostile",
    [
        np.zeros((2, 4), np.float32),
        np.zeros((2, 3), np.int64),
        np.full((2, 3), np.nan, np.float32),
        np.full((2, 3), np.inf, np.float32),
        np.full((2, 3), 2 * LARGEST_LOGIT, np.float32),
    ],
)
def test_a_clients_unusable_logits_are_refused(hostile: np.ndarray[tuple[int, ...], np.dtype[np.generic]]):
    with pytest.raises(PeerError, match="client 1"):
        mean_logits([np.zeros((2, 3), np.float32), hostile])


def test_federated_distillation_beats_every_client_alone():
    """Four clients with six classes each; the server has unlabelled digits, and hears logits alone."""
    train, test = digits()
    public, private = train.rows(slice(500)), train.rows(slice(500, None))
    clients = []
    for k in range(4):
        mine = private.rows(np.flatnonzero(np.isin(private.y, [(3 * k + i) % 10 for i in range(6)])))
        clients.append((finetune(fresh(), mine, Tuning(epochs=10, lr=3e-3), threads=1), len(mine)))
    said = mean_logits([predict(model, public.x) for model, _ in clients], [n for _, n in clients], centred=True)
    pupil = distil(fresh(), said, public.x, Tuning(epochs=12, lr=3e-3))
    assert right(pupil, test) > max(right(model, test) for model, _ in clients) + 0.05


def test_the_report_counts_what_changed():
    train, test = digits()
    sparse = prune(trained(), 0.8)
    change = before_after(trained(), sparse, test.x, test.y, calibration=[train.x[:100]], formats=("engine",))
    assert change.before.parameters == change.after.parameters == trained().parameters
    assert change.after.nonzero < 0.25 * change.before.nonzero
    assert change.after.zlib_bytes < 0.6 * change.before.zlib_bytes
    assert change.before.accuracy == right(trained(), test)
    assert change.agreement == (predict(sparse, test.x).argmax(1) == predict(trained(), test.x).argmax(1)).mean()
    assert before_after(trained(), trained(), test.x, test.y, calibration=[train.x[:100]]).agreement == 1
    assert set(as_json(change)) == {"before", "after", "agreement"}


def test_a_search_meets_its_size_and_keeps_its_word(tmp_path):
    train, test = digits()
    rows: list[Tried] = []
    found = search(trained(), train, test, Goal(4000, ("engine", "onnx"), max_drop=5.0), QUICK, rows.append)
    assert list(found.tried) == rows
    assert rows[-1].note == "chosen, trained on all examples"
    assert found.drop <= 5.0
    artefact = export(
        found.model,
        formats=("engine", "onnx"),
        calibration=[train.x[:200]],
        out=tmp_path,
        weight_bits=found.levers.bits,
    )
    for name in ("engine_int8", "onnx_int8"):
        assert artefact.paths[name].stat().st_size <= 4000
        said = Runner.open(artefact.paths[name]).predict(test.x)
        assert abs((said.argmax(1) == test.y).mean() - found.accuracy) < 0.02


def test_a_model_that_fits_is_left_as_it_is():
    train, test = digits()
    found = search(trained(), train, test, Goal(1_000_000, ("engine",)), QUICK)
    assert found.levers.untouched
    assert found.model is trained()
    assert found.accuracy >= right(trained(), test) - 0.01


def test_a_search_is_honest_about_what_it_cannot_do():
    train, test = digits()
    with pytest.raises(SearchError, match=r"no model fits in 100 bytes: the least is [\d,]+") as refused:
        search(trained(), train, test, Goal(100, ("engine",)), QUICK)
    assert all(one.note == "does not fit" for one in refused.value.tried)
    with pytest.raises(SearchError, match=r"the best model of at most 1,800 bytes .* points below"):
        search(trained(), train, test, Goal(1800, ("engine",), max_drop=0.0), QUICK)
    flat = train.x.reshape(len(train), 64)
    one_layer = student(nn.Linear(64, 10), flat[:1])  # its only channels are its output
    with pytest.raises(SearchError, match=r"the least is \d+ \(4-bit weights"):
        search(one_layer, Examples(flat, train.y), Examples(flat, train.y), Goal(100, ("engine",)), QUICK)
    values = Examples(train.x, train.y.astype(np.float32))
    with pytest.raises(ConfigError, match="targets are float32"):
        search(trained(), values, test, Goal(4000))
