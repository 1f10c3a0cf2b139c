"""Streaming metrics against scikit-learn over the whole data at once, however it is cut into batches."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from edge_runtime import losses
from edge_runtime.errors import ConfigError
from edge_runtime.train.metrics import (
    CLASS_METRICS,
    VALUE_METRICS,
    Accuracy,
    ConfusionMatrix,
    Evaluation,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    Part,
    PrecisionRecallF1,
)

CLASSES = 5


def gathered(metric: Metric, logits: np.ndarray, targets: np.ndarray, cuts: Iterable[int] = ()) -> dict[str, float]:
    metric.reset()
    for z, y in zip(np.split(logits, list(cuts)), np.split(targets, list(cuts)), strict=True):
        metric.update(z, y)
    return metric.figures()


@st.composite
def classified(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Logits without ties, targets of which some are masked and some classes may be missing, and places to cut."""
    count = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    targets = rng.integers(0, draw(st.integers(1, CLASSES)), count)
    targets[rng.random(count) < draw(st.sampled_from([0.0, 0.3]))] = -100
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=4)))
    return rng.normal(size=(count, CLASSES)), targets, cuts


@given(data=classified(), zero=st.sampled_from([0.0, 1.0]), average=st.sampled_from(["macro", "micro", "weighted"]))
@settings(deadline=None)
def test_averages_are_scikit_learns(data: tuple[np.ndarray, np.ndarray, list[int]], zero: float, average: str) -> None:
    logits, targets, cuts = data
    kept = targets != -100
    ours = gathered(PrecisionRecallF1(average, zero), logits, targets, cuts)
    if not kept.any():
        assert ours == {"precision": zero, "recall": zero, "f1": zero}
        return
    theirs = sk.precision_recall_fscore_support(
        targets[kept], logits[kept].argmax(1), average=average, zero_division=zero
    )
    assert [ours["precision"], ours["recall"], ours["f1"]] == pytest.approx(theirs[:3], abs=1e-12)


@given(data=classified(), zero=st.sampled_from([0.0, 1.0]))
@settings(deadline=None)
def test_per_class_figures_and_the_matrix_are_scikit_learns(
    data: tuple[np.ndarray, np.ndarray, list[int]], zero: float
) -> None:
    logits, targets, cuts = data
    kept = targets != -100
    true, predicted, labels = targets[kept], logits[kept].argmax(1), list(range(CLASSES))
    confusion = ConfusionMatrix()
    assert gathered(confusion, logits, targets, cuts) == {}
    if not kept.any():
        assert not confusion.matrix.any()
        return
    np.testing.assert_array_equal(confusion.matrix, sk.confusion_matrix(true, predicted, labels=labels))
    ours = gathered(PrecisionRecallF1("none", zero), logits, targets, cuts)
    theirs = sk.precision_recall_fscore_support(true, predicted, labels=labels, zero_division=zero)
    for name, values in zip(("precision", "recall", "f1"), theirs[:3], strict=True):
        assert [ours[f"{name}_{c}"] for c in labels] == pytest.approx(values, abs=1e-12)


@given(data=classified(), k=st.integers(1, CLASSES))
@settings(deadline=None)
def test_accuracies_are_scikit_learns(data: tuple[np.ndarray, np.ndarray, list[int]], k: int) -> None:
    logits, targets, cuts = data
    kept = targets != -100
    (name, ours), *_ = gathered(Accuracy(k), logits, targets, cuts).items()
    assert name == ("accuracy" if k == 1 else f"top{k}_accuracy")
    if not kept.any():
        assert ours == 0.0
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where k is the number of classes
        theirs = sk.top_k_accuracy_score(targets[kept], logits[kept], k=k, labels=range(CLASSES))
    assert ours == pytest.approx(theirs)


@given(count=st.integers(1, 50), seed=st.integers(0, 99), cut=st.integers(0, 50))
def test_errors_are_scikit_learns(count: int, seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=(2, count, 3)).astype(np.float32)
    assert gathered(MeanSquaredError(), z, y, [cut])["mse"] == pytest.approx(sk.mean_squared_error(y, z), rel=1e-6)
    assert gathered(MeanAbsoluteError(), z, y, [cut])["mae"] == pytest.approx(sk.mean_absolute_error(y, z), rel=1e-6)


def test_sequences_count_every_position_that_is_not_masked() -> None:
    logits = np.eye(3)[[[0, 1], [2, 2]]]
    assert gathered(Accuracy(ignore_index=9), logits, np.array([[0, 9], [1, 2]])) == {"accuracy": 2 / 3}


def test_of_equal_logits_the_first_is_the_prediction_and_nan_hits_nothing_in_the_top_k() -> None:
    assert gathered(Accuracy(), np.zeros((2, 3)), np.array([0, 1])) == {"accuracy": 0.5}
    assert gathered(Accuracy(2), np.full((2, 3), np.nan), np.array([0, 1])) == {"top2_accuracy": 0.0}


@pytest.mark.parametrize(
    ("logits", "targets", "text"),
    [
        (np.zeros((4, 3)), np.zeros(3, np.int64), "do not fit"),
        (np.zeros((4, 3)), np.zeros((4, 2), np.int64), "do not fit"),
        (np.zeros((4, 3)), np.zeros(4), "whole-number targets"),
        (np.zeros((4, 3)), np.full(4, 3), "classes 3 to 3, the model has 3"),
        (np.zeros((4, 3)), np.full(4, -1), "classes -1 to -1"),
    ],
)
@pytest.mark.parametrize("metric", [Accuracy(), Accuracy(2), ConfusionMatrix(), PrecisionRecallF1()], ids=str)
def test_targets_that_do_not_fit_are_refused(
    metric: Metric, logits: np.ndarray, targets: np.ndarray, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        metric.update(logits, targets)


@pytest.mark.parametrize("metric", [MeanSquaredError(), MeanAbsoluteError()], ids=str)
def test_values_are_never_broadcast(metric: Metric) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        metric.update(np.zeros((4, 1), np.float32), np.zeros((4, 4), np.float32))
    metric.update(np.zeros((4, 1), np.float32), np.ones(4, np.float32))
    assert list(metric.figures().values()) == [1.0]


def test_before_the_first_batch_every_metric_has_its_documented_value() -> None:
    assert Accuracy().figures() == {"accuracy": 0.0}
    assert PrecisionRecallF1("macro", 1.0).figures() == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert PrecisionRecallF1("none").figures() == {}
    assert np.isnan([MeanSquaredError().figures()["mse"], MeanAbsoluteError().figures()["mae"]]).all()


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(256, 10)), rng.integers(0, 10, 256)
    kept: Sequence[Metric] = [Accuracy(), Accuracy(5), PrecisionRecallF1("weighted")]
    tracemalloc.start()
    try:
        for metric in kept:
            metric.update(logits, targets)
        before = tracemalloc.get_traced_memory()[0]
        for metric in kept * 50:
            metric.update(logits, targets)
        assert tracemalloc.get_traced_memory()[0] - before < 2048
    finally:
        tracemalloc.stop()


# Evaluation: which metrics, and how batches weigh in the mean loss.


def test_the_mean_loss_weighs_batches_by_what_counts_in_them() -> None:
    evaluation = Evaluation(losses.CrossEntropy(class_weights=(1.0, 3.0), ignore_index=9))
    evaluation.add(2.0, np.zeros((3, 2)), np.array([0, 1, 9]))
    evaluation.add(0.0, np.zeros((2, 2)), np.array([9, 9]))
    evaluation.add(5.0, np.zeros((1, 2)), np.array([0]))
    assert evaluation.figures()["loss"] == pytest.approx((4 * 2.0 + 1 * 5.0) / 5)


def test_a_wholly_masked_evaluation_has_loss_0_and_no_example_is_refused() -> None:
    evaluation = Evaluation(losses.CrossEntropy())
    with pytest.raises(ValueError, match="no examples"):
        evaluation.figures()
    evaluation.add(0.0, np.zeros((2, 2)), np.array([-100, -100]))
    assert evaluation.figures() == {"loss": 0.0, "accuracy": 0.0}


def names_of(loss: losses.Loss, metrics: Sequence[Metric | str] | None, output: object, target: object) -> set[str]:
    evaluation = Evaluation(loss, metrics)
    evaluation.add(0.0, output, target)
    return evaluation.figures().keys() - {"loss"}


def test_names_stand_for_the_metric_of_every_output_that_they_fit() -> None:
    z, classes, values = np.zeros((2, 3), np.float32), np.array([0, 1]), np.zeros((2, 3), np.float32)
    two = losses.MultiTask((losses.Focal(), losses.MSE()))
    assert names_of(losses.CrossEntropy(), None, z, classes) == {"accuracy"}
    assert names_of(losses.Distillation(), None, z, (classes, values)) == {"accuracy"}
    assert names_of(losses.MSE(), None, z, values) == set()
    assert names_of(losses.MSE(), ("mse", "mae"), z, values) == {"mse", "mae"}
    assert names_of(two, None, (z, z), (classes, values)) == {"accuracy_0"}
    assert names_of(two, ("accuracy", "mse"), (z, z), (classes, values)) == {"accuracy_0", "mse_1"}
    own = [Part(Accuracy(2), 0, 0, "_digit")]
    assert names_of(two, own, (z, z), (classes, values)) == {"top2_accuracy_digit"}


def test_every_named_metric_can_be_asked_for() -> None:
    z = np.eye(6, dtype=np.float32)
    for name in CLASS_METRICS:
        assert names_of(losses.CrossEntropy(), [name], z, np.arange(6))
    for name in VALUE_METRICS:
        assert names_of(losses.Huber(), [name], z, z) == {name}


def test_a_metric_that_does_not_fit_the_targets_is_refused() -> None:
    with pytest.raises(ConfigError, match="'accuracy' does not fit the targets of MSE"):
        Evaluation(losses.MSE(), ["accuracy"])
    with pytest.raises(ConfigError, match="'acuracy': must be one of accuracy"):
        Evaluation(losses.CrossEntropy(), ["acuracy"])


def test_the_losss_own_ignore_index_reaches_named_metrics() -> None:
    evaluation = Evaluation(losses.CrossEntropy(ignore_index=1))
    evaluation.add(0.0, np.eye(2), np.array([0, 1]))
    assert evaluation.figures()["accuracy"] == 1.0


def test_a_metric_object_starts_each_evaluation_afresh_and_can_be_read_after_it() -> None:
    confusion = ConfusionMatrix()
    for _ in range(2):
        evaluation = Evaluation(losses.CrossEntropy(), [confusion])
        evaluation.add(0.0, np.eye(3), np.arange(3))
    np.testing.assert_array_equal(confusion.matrix, np.eye(3))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="average = 'mean'"):
        PrecisionRecallF1("mean")
    with pytest.raises(ConfigError, match="k = 0"):
        Accuracy(0)
