"""Which tensors travel and which stay."""

from __future__ import annotations

import numpy as np
import pytest

from edge_runtime.errors import ConfigError
from edge_runtime.train.parts import Parts

STATE = {
    "body.weight": np.zeros((2, 3), np.float32),
    "norm.weight": np.zeros(2, np.float32),
    "norm.running_mean": np.zeros(2, np.float32),
    "norm.num_batches_tracked": np.zeros((), np.int64),
    "frozen.weight": np.zeros(4, np.float32),
    "head.weight": np.zeros((5, 2), np.float32),
    "head.bias": np.zeros(5, np.float32),
}
MOVING = ["body.weight", "norm.weight", "norm.running_mean", "head.weight", "head.bias"]


def names(layout: object) -> list[str]:
    return [name for name, _ in layout.shapes]  # type: ignore[attr-defined]


def parts(*personal: str, control: bool = False) -> Parts:
    return Parts.of(STATE, MOVING, {"norm.running_mean"}, personal=personal, control=control)


def test_without_personal_layers_or_control_all_float_tensors_travel() -> None:
    made = parts()
    assert made.down == made.shared
    assert made.up == made.moving
    assert names(made.down) == [name for name in STATE if not name.endswith("tracked")]
    assert names(made.up) == MOVING
    assert made.personal.size == made.control.size == 0


def test_personal_layers_travel_neither_way() -> None:
    made = parts("head.*", "norm.*")
    assert names(made.personal) == ["norm.weight", "norm.running_mean", "head.weight", "head.bias"]
    assert names(made.down) == ["body.weight", "frozen.weight"]
    assert names(made.up) == ["body.weight"]


def test_a_control_variate_stands_behind_each_trained_tensor_that_travels() -> None:
    made = parts("head.*", control=True)
    assert names(made.control) == ["control/body.weight", "control/norm.weight"]  # running statistics have no gradient
    assert made.down.size == made.shared.size + made.control.size
    assert names(made.up)[-2:] == names(made.control)


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"personal\.layers = 'tail\.\*'"):
        parts("tail.*")
