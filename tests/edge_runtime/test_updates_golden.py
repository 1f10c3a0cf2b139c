"""The wire format of every codec, to the byte: files written once, read for ever."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.updates import CODECS, make_codec

GOLDEN = Path(__file__).parents[1] / "golden"
_spec = util.spec_from_file_location("golden_updates", GOLDEN / "updates.py")
golden = util.module_from_spec(_spec)
_spec.loader.exec_module(golden)

HINT = "run `python tests/golden/updates.py`, if the format may change"


def test_every_codec_has_its_files_and_no_file_is_left_over() -> None:
    files = {path.name for path in golden.HERE.iterdir()}
    assert files == {f"{case}{kind}.bin" for case in golden.CASES for kind in ("", ".decoded")}, HINT
    assert set(CODECS) <= set(golden.CASES)


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return golden.make()


# Singular vectors differ in their last bits from machine to machine, and so may what `context` makes of them.
@pytest.mark.parametrize("case", sorted(set(golden.CASES) - {"context"}))
def test_the_files_are_what_is_written_today(made: dict[str, bytes], case: str) -> None:
    assert made[f"{case}.bin"] == (golden.HERE / f"{case}.bin").read_bytes(), HINT


@pytest.mark.parametrize("case", golden.CASES)
def test_the_files_are_read_as_ever(case: str) -> None:
    names, _ = golden.CASES[case]
    payload = (golden.HERE / f"{case}.bin").read_bytes()
    decoded = make_codec(names).decode_vector(payload, golden.LAYOUT, round_number=golden.ROUND)
    assert decoded.astype("<f4").tobytes() == (golden.HERE / f"{case}.decoded.bin").read_bytes()


def test_a_receivers_options_do_not_change_what_it_reads() -> None:
    payload = (golden.HERE / "randk_uniform.bin").read_bytes()
    one, other = (
        make_codec("randk,uniform", fraction=fraction, bits=bits).decode_vector(payload, golden.LAYOUT)
        for fraction, bits in ((0.25, 3), (1.0, 8))
    )
    np.testing.assert_array_equal(one, other)


def test_a_matrix_of_low_rank_is_among_what_context_writes() -> None:
    layout = golden.LAYOUT.subset(["hidden.weight"])
    x = golden.LAYOUT.views(golden.values())["hidden.weight"]
    payload = make_codec("context", nmse=1e-3).encode({"hidden.weight": x})
    decoded = make_codec("context").decode_vector(payload, layout)
    assert np.sum((decoded - x.ravel()) ** 2) <= 1e-3 * np.sum(x**2)
    assert 8 * len(payload) < 1.5 * x.size, "480 values, from the 44 numbers of two vectors"
