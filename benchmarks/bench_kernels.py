"""How fast the native kernels are, one op at a time: products beside NumPy and PyTorch, every other op beside PyTorch.

One thread, CPU time, warm caches. Ours and the rival take turns in blocks of a few milliseconds; a ratio is the median
of the ratios of neighbouring blocks, and says how many times faster ours is. Operands stay the same from call to call.

What a call costs is in the figures so: NumPy writes into `out=`, called from Python. `call` is ours called from Python
too, one op of a Program a call, by ctypes with its arguments prepared. `kernel` is many ops in one run of a Program, as
a training step has them: ours without any Python. PyTorch is called through Python and allocates its result, as eager
training does; so do `torch.mm` and the rows of table 2, where ours is `kernel`.

1. Products: C[M,N] = A[M,K] B[K,N]. NN takes all as rows lie; NT reads B as its transpose (y = x w^T, a linear layer's
   forward), TN reads A as its transpose (the gradient of its weights).
2. INT8 products with a constant, packed B, against NumPy's float32 product and ONNX Runtime's MatMulInteger.
3. Ops: forward and gradients on the layer shapes of the five models, against the functions that PyTorch trains with.
   The first result of each is compared with PyTorch's; a difference fails the benchmark.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bars import Bar, geomean
from processes import ONE_THREAD, machine, save

if TYPE_CHECKING:
    from kernel_cases import Arena, Case, Spec

    from edge_runtime.kernels.native import Team

# M, N, K of products in the five models and around them; the bars are held on NN.
SHAPES = (
    (16, 16, 16), (32, 32, 32), (64, 64, 64), (128, 128, 128), (256, 256, 256), (512, 512, 512), (32, 128, 784),
    (128, 784, 32), (32, 10, 128), (196, 32, 144), (784, 16, 72), (3136, 32, 288), (16, 512, 512), (1, 512, 512),
)  # fmt: skip
GEMV = (1, 512, 512)
EACH, ALL, GEMV_LEAST = 0.9, 1.0, 0.8
TABLES = ("products", "int8", "ops")
BLOCK_S = 0.004
TOLERANCE = 1e-3  # of the largest value
MOST_REPEATS = 4096


@dataclass(frozen=True)
class Row:
    """Microseconds of ours and of the rival, and how many times faster ours is."""

    isa: str
    label: str
    rival: str
    ours_us: float
    rival_us: float
    ratio: float

    def rounded(self) -> dict[str, Any]:
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(self).items()}


def main() -> None:
    options = parse(sys.argv[1:])
    if any(os.environ.get(name) != "1" for name in ONE_THREAD):  # BLAS reads them when it is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})  # noqa: S606

    import torch

    from edge_runtime.kernels import native

    torch.set_num_threads(1)
    names = options.isa or [native.selected_isa()]
    print(f"Machine: {machine()}; one thread, CPU time; this build and CPU have {', '.join(native.isas())}")
    rows: list[Row] = []
    bars: list[str] = []
    different: list[str] = []
    for isa in native.isas() if names == ["all"] else names:
        native.select_isa(isa)
        shapes = [shape for shape in SHAPES if wanted(str(shape), options.only)]
        if "products" in options.tables and shapes:
            rows += print_products(isa, shapes, options.pairs, bars)
        if "int8" in options.tables and shapes:
            rows += print_int8(isa, shapes, options.pairs)
        if "ops" in options.tables:
            rows += print_ops(isa, options, different)
    if options.json:
        about = {"command": "hedgerow bench kernels", "batch": options.batch}
        save(Path(options.json), about, [row.rounded() for row in rows], bars)
    if different:
        raise SystemExit("\n".join(f"FAILED: {label}: the result is not PyTorch's" for label in different))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="rows that contain one of these, such as depthwise"
    )
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--isa", nargs="+", default=[], metavar="NAME", help="kernels to use, or all (default: best)")
    parser.add_argument("--batch", type=int, default=8, help="of the layer shapes in table 3")
    parser.add_argument(
        "--threads", type=int, default=1, help="add a column to table 3: wall time of one thread over that of so many"
    )
    parser.add_argument("--pairs", type=int, default=15, help="blocks of each side")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args(arguments)


def wanted(label: str, only: list[str]) -> bool:
    return not only or any(text in label for text in only)


# Timing.


@dataclass(frozen=True)
class Block:
    """Something to time: `run(n)` does it n times."""

    run: Callable[[int], None]
    most: int = 1 << 20
    clock: Callable[[], float] = time.process_time

    def repeats(self) -> int:
        """How many of them take BLOCK_S."""
        n = 1
        while True:
            took = self.seconds(n)
            if took >= BLOCK_S / 4 or n >= self.most:
                return min(self.most, max(1, round(n * BLOCK_S / max(took, 1e-7))))
            n = min(self.most, n * 4)

    def seconds(self, n: int) -> float:
        began = self.clock()
        self.run(n)
        return self.clock() - began


def calls(function: Callable[[], Any]) -> Block:
    def run(n: int) -> None:
        for _ in range(n):
            function()

    return Block(run)


def kernel(arena: Arena, op: Spec) -> Block:
    """Ours, many ops in one run; the op stands in the table as often as a block is long."""
    program = arena.program(op, MOST_REPEATS)
    return Block(lambda n: check(program.run(arena.bytes, 0, n)[0]), MOST_REPEATS)


def speed_up(arena: Arena, op: Spec, team: Team, pairs: int) -> float:
    """How many times faster the op is on a team, wall time: the least block over the least block."""
    program = arena.program(op, MOST_REPEATS)
    alone, shared = (
        Block(lambda n, who=who: check(program.run(arena.bytes, 0, n, who)[0]), MOST_REPEATS, time.perf_counter)  # type: ignore[misc]
        for who in (None, team)
    )
    n = alone.repeats()
    times = [(alone.seconds(n), shared.seconds(n)) for _ in range(pairs)]
    return min(one for one, _ in times) / min(many for _, many in times)


def one_call(arena: Arena, op: Spec) -> Block:
    """Ours, one op a call: the core's own entry point, its arguments bound beforehand."""
    from edge_runtime.kernels import native

    program = arena.program(op)
    run, session, bytes_at = native._core().hr_session_run, program._session, arena.bytes.ctypes.data
    bad = ctypes.byref(ctypes.c_int64())
    check(run(session, None, bytes_at, 0, 1, bad))

    def repeat(n: int, _held: Any = program) -> None:
        for _ in range(n):
            run(session, None, bytes_at, 0, 1, bad)

    return Block(repeat)


def check(status: int) -> None:
    if status != 0:
        raise ValueError(f"the run stopped with status {status}")


def paired(ours: Block, rival: Block, pairs: int) -> tuple[float, float, float]:
    """Seconds of one of ours and of one of the rival's (medians), and the median of rival/ours over the pairs."""
    counts = ours.repeats(), rival.repeats()
    times = [(ours.seconds(counts[0]) / counts[0], rival.seconds(counts[1]) / counts[1]) for _ in range(pairs)]
    ratio = statistics.median(theirs / mine for mine, theirs in times)
    return statistics.median(mine for mine, _ in times), statistics.median(theirs for _, theirs in times), ratio


# Table 1.


def product(form: str, m: int, n: int, k: int) -> tuple[Arena, Spec, Callable[[], Any], Callable[[], Any]]:
    """Ours, NumPy's and PyTorch's product of one form."""
    import numpy as np
    import torch
    from kernel_cases import Arena, randn, tensor, zeros

    a = randn(k, m).T if form == "TN" else randn(m, k)
    b = randn(n, k).T if form == "NT" else randn(k, n)
    rows_a, rows_b = (a.T if form == "TN" else a), (b.T if form == "NT" else b)
    arena = Arena({"a": rows_a, "b": rows_b, "c": zeros(m, n)})
    op: Spec = {
        "NN": ("linear_dx", "a b c", (m, k, n), ()),
        "NT": ("linear", "a b - c", (m, n, k), ()),
        "TN": ("linear_dw", "a b c", (k, m, n), ()),
    }[form]  # type: ignore[assignment]
    out = zeros(m, n)
    ta, tb = tensor(rows_a), tensor(rows_b)
    ta, tb = (ta.T if form == "TN" else ta), (tb.T if form == "NT" else tb)
    arena.run(op)
    if not np.allclose(arena["c"], a @ b, atol=TOLERANCE * float(np.abs(a @ b).max())):
        raise ValueError(f"{form} ({m}, {n}, {k}): the product is not NumPy's")
    return arena, op, lambda: np.matmul(a, b, out=out), lambda: torch.mm(ta, tb)


def print_products(isa: str, shapes: list[tuple[int, int, int]], pairs: int, bars: list[str]) -> list[Row]:
    print(f"\n1. Products, {isa}: times faster than NumPy's matmul(out=) and torch.mm; GFLOP/s of the kernel")
    forms = ("NN", "NT", "TN")
    head = " ".join(f"{form + ' call':>8} {'kernel':>7} {'x torch':>7} {'GFLOP/s':>8}" for form in forms)
    print(f"   {'M, N, K':16} {head}  NumPy NN GFLOP/s")
    rows: list[Row] = []
    over_numpy: dict[tuple[str, str], list[float]] = {}
    for m, n, k in shapes:
        cells, numpy_s = [], math.nan
        for form in forms:
            arena, op, numpy_form, torch_form = product(form, m, n, k)
            for how, ours in (("call", one_call(arena, op)), ("kernel", kernel(arena, op))):
                ours_s, rival_s, ratio = paired(ours, calls(numpy_form), pairs)
                over_numpy.setdefault((form, how), []).append(ratio)
                rows.append(Row(isa, f"{form} {m},{n},{k} {how}", "numpy", 1e6 * ours_s, 1e6 * rival_s, ratio))
                cells.append(f"{ratio:{8 if how == 'call' else 7}.2f}")
                numpy_s = rival_s if form == "NN" else numpy_s
            ours_s, rival_s, ratio = paired(kernel(arena, op), calls(torch_form), pairs)
            rows.append(Row(isa, f"{form} {m},{n},{k} kernel", "torch", 1e6 * ours_s, 1e6 * rival_s, ratio))
            cells += [f"{ratio:7.2f}", f"{2e-9 * m * n * k / ours_s:8.1f}"]
        print(f"   {f'{m}, {n}, {k}':16} {' '.join(cells)}  {2e-9 * m * n * k / numpy_s:8.1f}", flush=True)
    for (form, how), ratios in over_numpy.items():
        print(f"   geomean over NumPy, {form} {how}: {geomean(ratios):.2f}, least {min(ratios):.2f}")
    held = [
        str(bar)
        for how in ("call", "kernel")
        for bar in product_bars(f"{isa}, NN {how} over NumPy", dict(zip(shapes, over_numpy["NN", how], strict=True)))
    ]
    print("\n".join(f"   bar: {line}" for line in held))
    bars += held
    return rows


def product_bars(what: str, ratios: dict[tuple[int, int, int], float]) -> Iterator[Bar]:
    others = {shape: ratio for shape, ratio in ratios.items() if shape != GEMV}
    if others:
        worst = min(others, key=lambda shape: others[shape])
        yield Bar(f"{what}, worst shape {worst}", others[worst], EACH)
    yield Bar(f"{what}, geomean of {len(ratios)} shapes", geomean(ratios.values()), ALL)
    if GEMV in ratios:
        yield Bar(f"{what}, {GEMV}", ratios[GEMV], GEMV_LEAST)


# Table 2.


def print_int8(isa: str, shapes: list[tuple[int, int, int]], pairs: int) -> list[Row]:
    import numpy as np
    from kernel_cases import randn, zeros

    from edge_runtime.kernels.int8 import PackedS8, gemm_s8

    rivals = ("numpy", "onnxruntime s8", "onnxruntime u8")
    print(f"\n2. INT8 products, {isa}: GOP/s; times faster than NumPy's float32 matmul(out=), ORT's MatMulInteger of")
    print("   int8 and int8, and of uint8 and int8, which without VNNI saturates: its share of right sums")
    print(f"   {'M, N, K':16} {'GOP/s':>8} {'x NumPy':>8} {'x s8':>8} {'x u8':>8} {'right u8':>8}")
    rows: list[Row] = []
    for m, n, k in shapes:
        a, b = (np.random.default_rng([m, n, k]).integers(-127, 128, size, np.int8) for size in ((m, k), (n, k)))
        packed, sums = PackedS8(b), np.empty((m, n), np.int32)
        signed, signed_sums = matmul_integer(a, b)
        shifted, shifted_sums = matmul_integer((a.astype(np.int16) + 128).astype(np.uint8), b)
        fa, fb, out = randn(m, k), randn(k, n), zeros(m, n)
        ours = calls(partial(gemm_s8, a, packed, sums))
        for name, rival in zip(rivals, (partial(np.matmul, fa, fb, out=out), signed, shifted), strict=True):
            ours_s, rival_s, ratio = paired(ours, calls(rival), pairs)
            rows.append(Row(isa, f"int8 {m},{n},{k}", name, 1e6 * ours_s, 1e6 * rival_s, ratio))
        if not np.array_equal(sums, signed_sums()):
            raise ValueError(f"({m}, {n}, {k}): the INT8 product is not ONNX Runtime's")
        ratios = " ".join(f"{row.ratio:8.2f}" for row in rows[-3:])
        right = np.mean(sums == shifted_sums())
        speed = 2e-3 * m * n * k / rows[-1].ours_us
        print(f"   {f'{m}, {n}, {k}':16} {speed:8.1f} {ratios} {right:8.3f}", flush=True)
    for name in rivals:
        found = [row.ratio for row in rows if row.rival == name]
        print(f"   geomean over {name}: {geomean(found):.2f}, least {min(found):.2f}")
    return rows


def matmul_integer(a: Any, b: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """ONNX Runtime's (a - zero point) @ b.T with b constant: to run it on bound memory, and what it gave.

    The zero point is 0 for int8 and 128 for uint8. The runtime has kernels of its own for each of the two.
    """
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    element, zero = (TensorProto.UINT8, 128) if a.dtype == np.uint8 else (TensorProto.INT8, 0)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b", "zero"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", element, a.shape)],
        [helper.make_tensor_value_info("c", TensorProto.INT32, (len(a), len(b)))],
        [numpy_helper.from_array(b.T.copy(), "b"), numpy_helper.from_array(np.array(zero, a.dtype), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("a", a)
    binding.bind_output("c")
    return lambda: session.run_with_iobinding(binding), lambda: binding.copy_outputs_to_cpu()[0]


# Table 3.


def print_ops(isa: str, options: argparse.Namespace, different: list[str]) -> list[Row]:
    from kernel_cases import all_cases

    from edge_runtime.kernels.native import Team

    team = Team(options.threads) if options.threads > 1 else None
    threads = f"; then on {options.threads} threads over one, wall time" if team else ""
    rows: list[Row] = []
    families: dict[str, list[float]] = {}
    for case in (case for case in all_cases(options.batch) if wanted(case.label, options.only)):
        if not rows:
            print(f"\n3. Ops at batch {options.batch}, {isa}: microseconds, and times faster than PyTorch{threads}")
            print(f"   {'':62} {'ours':>9} {'torch':>9} {'x':>6}")
        if not same(case):
            different.append(case.label)
        ours_s, torch_s, ratio = paired(kernel(case.arena, case.op), calls(case.torch), options.pairs)
        rows.append(Row(isa, case.label, "torch", 1e6 * ours_s, 1e6 * torch_s, ratio))
        families.setdefault(family(case.label), []).append(ratio)
        shared = f" {speed_up(case.arena, case.op, team, options.pairs):6.2f}" if team else ""
        print(f"   {case.label:62} {1e6 * ours_s:9.1f} {1e6 * torch_s:9.1f} {ratio:6.2f}{shared}", flush=True)
    for name, ratios in families.items():
        print(f"   geomean of {len(ratios):3} rows: {geomean(ratios):6.2f}, least {min(ratios):5.2f}  {name}")
    return rows


def family(label: str) -> str:
    """The op with its kind and its pass: what stands outside the shape."""
    before, _, after = label.partition("(")
    last = after.split()[-1]
    return f"{before.strip()} {last}" if last in ("forward", "backward", "dx", "dw") else before.strip()


def same(case: Case) -> bool:
    """Whether ours gives what PyTorch gives first."""
    import numpy as np

    case.arena.run(case.op)
    found = case.torch()
    first = (found[0] if isinstance(found, tuple | list) else found).detach().numpy()
    ours = case.arena[case.result].reshape(first.shape)
    return bool(np.abs(ours - first).max() <= TOLERANCE * max(float(np.abs(first).max()), 1e-6))


if __name__ == "__main__":
    main()
