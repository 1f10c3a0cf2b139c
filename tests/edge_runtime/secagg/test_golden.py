"""The messages of a round, to the byte: files written once, read for ever."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.secagg import messages as m

GOLDEN = Path(__file__).parents[2] / "golden"
_spec = util.spec_from_file_location("golden_secagg", GOLDEN / "secagg.py")
golden = util.module_from_spec(_spec)
_spec.loader.exec_module(golden)

HINT = "run `python tests/golden/secagg.py`, if the protocol has a new version"
MESSAGES = [f"{number:02}_{kind.__name__}.bin" for number, kind in m.KINDS.items()]


def test_every_kind_of_message_has_its_file_and_no_file_is_left_over() -> None:
    assert {path.name for path in golden.HERE.iterdir()} == {*MESSAGES, "sum.bin"}, HINT


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return golden.make()


@pytest.mark.parametrize("name", [*MESSAGES, "sum.bin"])
def test_a_round_of_today_has_the_files_bytes(made: dict[str, bytes], name: str) -> None:
    assert made[name] == (golden.HERE / name).read_bytes(), HINT


@pytest.mark.parametrize(("number", "name"), list(zip(m.KINDS, MESSAGES, strict=True)))
def test_a_file_is_read_as_its_kind_and_written_back(number: int, name: str) -> None:
    data = (golden.HERE / name).read_bytes()
    agreed = golden.agreed()
    message = m.decode(data, agreed)
    assert type(message) is m.KINDS[number]
    assert m.encode(message, agreed) == data


def test_the_round_has_what_the_files_are_to_show() -> None:
    agreed = golden.agreed()
    read = {name: m.decode((golden.HERE / name).read_bytes(), agreed) for name in MESSAGES}
    assert read["01_Setup.bin"].config == agreed
    assert len(read["06_MaskedInput.bin"].unopened) == 1
    assert read["07_Survivors.bin"].dropped == (golden.DROPPED,)
    unmask = read["10_Unmask.bin"]
    assert golden.DROPPED in unmask.mask_keys
    assert golden.WITNESS in unmask.seeds
    survivors = [i for i, client in enumerate(golden.CLIENTS) if client != golden.DROPPED]
    inputs = [golden.contribution(i) for i in survivors]
    total = sum(one.values * one.weight for one in inputs)
    found = np.frombuffer((golden.HERE / "sum.bin").read_bytes(), "<i8")
    np.testing.assert_array_equal(found, [*total, sum(one.weight for one in inputs)])
