"""A Program survives the way through a file bit for bit, and what reads it needs no PyTorch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import zlib
from importlib import util
from pathlib import Path

import numpy as np
import pytest

import edge_runtime as er
from edge_runtime.errors import ProgramError

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("*.program"))


def equal(one: er.Program, other: er.Program) -> bool:
    plain = [dataclasses.replace(program, initial={}) for program in (one, other)]
    contents = one.initial.keys() == other.initial.keys() and all(
        one.initial[name].dtype == other.initial[name].dtype and np.array_equal(one.initial[name], other.initial[name])
        for name in one.initial
    )
    return plain[0] == plain[1] and contents


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_program_read_from_a_file_is_equal_and_writes_the_same_bytes(path, tmp_path):
    data = path.read_bytes()
    program = er.Program.load(path)
    assert program.to_bytes() == data
    assert equal(er.Program.from_bytes(data), program)
    saved = program.save(tmp_path / "folder" / "again.program")
    assert saved.read_bytes() == data
    assert equal(er.Program.load(saved), program)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_file_is_laid_out_as_the_format_says(path):
    """From literal bytes, so that a change of the format is a change here."""
    data = path.read_bytes()
    assert data[:8] == b"HEDGEPRG"
    length = int.from_bytes(data[8:16], "little")
    assert int.from_bytes(data[16:20], "little") == zlib.crc32(data[64:])
    assert data[20:64] == bytes(44)
    header = json.loads(data[64 : 64 + length])
    assert header["version"] == 1
    assert json.dumps(header, sort_keys=True, separators=(",", ":")).encode() == data[64 : 64 + length]
    blob = 64 + length + -length % 64
    assert not any(data[64 + length : blob])
    shapes = {name: shape for name, _, shape, *_ in header["state"]}
    program = er.Program.load(path)
    for name, offset in header["initial"]:
        assert offset % 64 == 0
        content = np.frombuffer(data, "<f4", int(np.prod(shapes[name])), blob + offset)
        np.testing.assert_array_equal(content, program.initial[name].ravel())
    assert len(data) % 64 == 0


def test_the_golden_files_are_up_to_date():
    pytest.importorskip("torch")
    spec = util.spec_from_file_location("tiny", GOLDEN / "tiny.py")
    tiny = util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    made = tiny.make()
    assert made.keys() == {path.name for path in FILES}
    for path in FILES:
        assert made[path.name] == path.read_bytes(), "run `python tests/golden/tiny.py`"


TRAINS = """
import sys
import numpy as np
import edge_runtime as er
program = er.Program.load(sys.argv[1])
trainer = er.Trainer(program, seed=2)
x, y = np.arange(64, dtype=np.float32).reshape(4, 1, 4, 4) / 64, np.array([0, 1, 2, 1])
print([trainer.step(x, y) for _ in range(3)], trainer.state_dict()["6.bias"].tolist())
assert "torch" not in sys.modules
"""


def test_a_fresh_process_loads_and_trains_it_without_torch():
    path = GOLDEN / "tiny_images.program"
    ran = subprocess.run([sys.executable, "-c", TRAINS, path], capture_output=True, text=True, check=True, timeout=60)
    trainer = er.Trainer(er.Program.load(path), seed=2)
    x, y = np.arange(64, dtype=np.float32).reshape(4, 1, 4, 4) / 64, np.array([0, 1, 2, 1])
    here = f"{[trainer.step(x, y) for _ in range(3)]} {trainer.state_dict()['6.bias'].tolist()}"
    assert ran.stdout.strip() == here


def test_training_does_not_change_the_program():
    program = er.Program.load(FILES[0])
    before = program.to_bytes()
    trainer = er.Trainer(program)
    trainer.step(np.ones((2, 1, 4, 4), np.float32), np.array([0, 1]))
    assert program.to_bytes() == before
    for content in program.initial.values():
        assert not content.flags.writeable


def test_a_program_without_weights_trains_alike_once_it_is_given_them():
    whole = er.Program.load(FILES[0])
    bare = er.Program.from_bytes(whole.without_weights().to_bytes())
    assert len(bare.to_bytes()) < len(whole.to_bytes())
    one, other = er.Trainer(whole), er.Trainer(bare)
    other.load_state_dict(one.state_dict())
    x, y = np.ones((2, 1, 4, 4), np.float32) * [[[[1]]], [[[2]]]], np.array([0, 1])
    assert one.step(x, y) == other.step(x, y)
    for name, value in one.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], value)


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    program = er.Program.load(FILES[0])
    path = program.save(tmp_path / "one.program")
    before = path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        er.Program.load(FILES[1]).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_or_the_new_file_and_never_a_part(tmp_path):
    programs = [er.Program.load(path) for path in FILES]
    path = programs[0].save(tmp_path / "one.program")
    done = threading.Event()

    def write() -> None:
        for turn in range(30):
            programs[turn % 2].save(path)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(er.Program.load(path).arena_bytes)
    writer.join()
    assert seen <= {program.arena_bytes for program in programs}


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ProgramError, match=r"gone\.program: cannot be read"):
        er.Program.load(tmp_path / "gone.program")
    (tmp_path / "other.program").write_bytes(b"something else")
    with pytest.raises(ProgramError, match=r"other\.program: not a Hedgerow Program"):
        er.Program.load(tmp_path / "other.program")


def test_another_version_is_refused_with_what_to_do():
    data = FILES[0].read_bytes().replace(b'"version":1}', b'"version":2}')
    data = data[:16] + zlib.crc32(data[64:]).to_bytes(4, "little") + data[20:]
    with pytest.raises(ProgramError, match="make it again"):
        er.Program.from_bytes(data)


def test_explain_says_where_the_bytes_go():
    for path in FILES:
        program = er.Program.load(path)
        text = program.explain()
        assert str(program.peak_bytes) in text
        for point in program.report.curve:
            assert point.name in text
        for name, nbytes in program.report.parts:
            assert name in text or not nbytes
        assert text.isascii()
        assert all(len(line) <= 120 or "fullest at" in line for line in text.splitlines())
