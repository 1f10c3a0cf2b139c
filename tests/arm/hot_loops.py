"""Cycles of the hottest loops on ARM, worked out rather than timed: `python3 hot_loops.py compile_commands.json`.

Compiles each kernel's file to assembly with its own flags, finds the innermost loop with most multiply-adds in the
function named below, and gives it to llvm-mca. What comes out is an upper bound (every load hits the first-level cache,
every branch is foreseen), but the bound is lost at once where the compiler spills an accumulator or loads too much.
No loop may store. llvm-mca's model of the Cortex-A76 is that of the A57, so the A76 is its Neoverse N1.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KERNELS_FOLDER = Path(__file__).parents[2] / "edge_runtime" / "kernels"
MCA = "llvm-mca-19"
CORES = {"A72": "cortex-a72", "A76": "neoverse-n1"}
ITERATIONS = 300
SHARE_OF_PEAK = 0.95


@dataclass(frozen=True)
class Kernel:
    """A function, the file whose flags it is compiled with, and the multiply-adds a cycle that its loop could do."""

    name: str
    source: str
    function: str
    peak: dict[str, float]
    header: str = ""  # where it stands by itself, never inlined: the loop is the same, and quicker to compile


KERNELS = (
    # 4 lanes x 1 pipe on the A72, x 2 pipes on the A76
    Kernel("sgemm 8x12", "isa/arm_neon.cc", "SgemmTile8x12", {"A72": 4, "A76": 8}, "gemm/neon_tile.h"),
    # 16 bytes x 2 pipes, four times sgemm
    Kernel("int8 dotprod", "gemm_s8/arm_dotprod.cc", "Dotprod.*Tile", {"A76": 32}),
    # No dot products on the A72: a multiplication of 8 bytes for every addition of their pairs, twice sgemm
    Kernel("int8 neon", "gemm_s8/arm_neon.cc", "Neon.*Tile", {"A72": 8}),
    # The same two bounds for the convolutions of the ops on signed bytes
    Kernel("conv_s8 dotprod", "integers/arm_dotprod.cc", "Tile.*Ll5ELl16E", {"A76": 32}),
    Kernel("conv_s8 neon", "integers/arm_neon.cc", "Tile.*Ll4ELl16E", {"A72": 8}),
)

# Multiply-adds of one instruction, by mnemonic and what it writes to.
MULTIPLY_ADDS = {
    ("fmla", "4s"): 4,
    ("sdot", "4s"): 16,
    ("smmla", "4s"): 32,
    ("smull", "8h"): 8,
    ("smlal", "8h"): 8,
    ("smull2", "8h"): 8,
    ("smlal2", "8h"): 8,
    ("smlal", "4s"): 4,
    ("smlal2", "4s"): 4,
}


def assembly(kernel: Kernel, command: dict[str, str]) -> list[str]:
    """The kernel's source compiled to text as `command` says."""
    flags = shlex.split(command["command"])
    flags = flags[: flags.index("-o")]
    text = f'#include "{kernel.header or kernel.source}"\n'
    if kernel.header:
        text += f"auto used = {kernel.function};\n"
    words = [*flags, "-S", "-o", "-", "-x", "c++", "-"]
    return subprocess.run(words, input=text, capture_output=True, text=True, check=True).stdout.splitlines()


def functions(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    name, start = "", 0
    for i, line in enumerate(lines):
        if match := re.match(r"(_Z[\w.$]+):", line):
            yield name, lines[start:i]
            name, start = match[1], i
    yield name, lines[start:]


def innermost_loops(lines: list[str]) -> Iterator[list[str]]:
    """The instructions between a label and a branch back to it that have no such pair between them."""
    labels: dict[str, int] = {}
    last_loop = -1
    for i, line in enumerate(lines):
        if match := re.match(r"(\.L\w+):", line):
            labels[match[1]] = i
        branch = re.match(r"\s+(?:b\.?\w*|cbn?z|tbn?z)\s.*?(\.L\w+)\s*$", line)
        if branch and labels.get(branch[1], -1) > last_loop:
            last_loop = labels[branch[1]]
            body = lines[last_loop + 1 : i + 1]
            yield [x for x in body if x.startswith("\t") and not x.strip().startswith((".", "//", "#"))]


def multiply_adds(instruction: str) -> int:
    match = re.match(r"\s+(\w+)\s+v\d+\.(\w+)", instruction)
    return MULTIPLY_ADDS.get((match[1], match[2]), 0) if match else 0


def cycles(loop: list[str], cpu: str) -> float:
    """Cycles of one turn, from many."""
    arguments = [MCA, "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", f"-iterations={ITERATIONS}", "-mattr=+dotprod"]
    report = subprocess.run(arguments, input="\n".join(loop), capture_output=True, text=True, check=True).stdout
    found = re.search(r"Total Cycles:\s+(\d+)", report)
    assert found, report
    return int(found[1]) / ITERATIONS


def hottest_loop(lines: list[str], function: str) -> list[str]:
    bodies = [body for name, body in functions(lines) if re.search(function, name)]
    loops = [loop for body in bodies for loop in innermost_loops(body)]
    return max(loops, key=lambda loop: sum(map(multiply_adds, loop)), default=[])


def check(kernel: Kernel, commands: dict[str, dict[str, str]]) -> Iterator[str]:
    """Print the kernel's row of the table for each core; yield what is wrong."""
    command = commands.get(str(KERNELS_FOLDER / kernel.source))
    if command is None:
        yield f"{kernel.name}: {kernel.source} is not compiled for this architecture"
        return
    loop = hottest_loop(assembly(kernel, command), kernel.function)
    if not loop:
        yield f"{kernel.name}: no function like {kernel.function} with a loop in {kernel.source}"
        return
    work, stores = sum(map(multiply_adds, loop)), sum(bool(re.match(r"\s+st", line)) for line in loop)
    if stores:
        yield f"{kernel.name}: {stores} stores in the loop"
    for core, peak in kernel.peak.items():
        rate = work / cycles(loop, CORES[core])
        print(f"{kernel.name:16}{core:6}{len(loop):12}{stores:8}{rate:12.2f}{rate / peak:10.1%}")
        if rate < SHARE_OF_PEAK * peak:
            yield f"{kernel.name} on {core}: {rate:.2f} multiply-adds a cycle, under {SHARE_OF_PEAK:.0%} of {peak}"


def main(compile_commands: str) -> int:
    if not shutil.which(MCA):
        print(f"skipped: {MCA} is not here")
        return 0
    commands = {
        str((Path(entry["directory"]) / entry["file"]).resolve()): entry
        for entry in json.loads(Path(compile_commands).read_text())
    }
    print(f"{'loop':16}{'core':6}{'instructions':>12}{'stores':>8}{'MAC/cycle':>12}{'of peak':>10}")
    wrong = [reason for kernel in KERNELS for reason in check(kernel, commands)]
    for reason in wrong:
        print(f"MISSED: {reason}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
