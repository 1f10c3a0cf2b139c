"""One process of one framework: makes a training step of one of the five models, then measures it. Prints JSON.

    steps.py prepare FRAMEWORK FOLDER MODEL BATCH [BUDGET]   write into FOLDER what the step needs; not counted
    steps.py time FRAMEWORK FOLDER [THREADS]                 CPU and wall seconds of the fastest step, the first loss
    steps.py memory FRAMEWORK FOLDER STEPS                   MB: idle after the imports, and the peak after some steps

The same everywhere: float32, mean cross-entropy, plain SGD(lr 0.01), weights after torch.manual_seed(0) in the order
of the model's construction, and data from one generator with seed 0: standard normal x or tokens below 80, then y.
`bench_engine_speed.py` and `bench_engine_memory.py` start this file; `ort` and `executorch` in the rivals' environment.
Nothing is imported at the top that one of the frameworks would not import itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODELS = ("lenet", "resnet8", "mbv2", "gru", "tfm")
LEARNING_RATE = 0.01
WARM_UP = 5
LEAST_STEPS, LEAST_CPU_S = 5, 0.35

Step = Callable[[], float]  # one step, and its loss
Start = Callable[[], Step]  # what the framework does from its imports to the first step


def main() -> None:
    command, framework, folder, *rest = sys.argv[1:]
    print(json.dumps(COMMANDS[command](framework, Path(folder), *rest)))


def prepare(framework: str, folder: Path, model: str, batch: str, budget: str = "") -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cell.json").write_text(json.dumps([model, int(batch)]))
    make = PREPARE.get(framework)
    return make(folder, *torch_model(model, int(batch)), budget) if make else {}


def time_step(framework: str, folder: Path, threads: str = "1") -> dict[str, float]:
    import time

    start = FRAMEWORKS[framework](folder, int(threads))
    step = start()
    first_loss = step()
    for _ in range(WARM_UP):
        step()
    cpu_s, wall_s = [], []
    began = time.process_time()
    while len(cpu_s) < LEAST_STEPS or time.process_time() - began < LEAST_CPU_S * int(threads):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        cpu_s.append(time.process_time() - cpu)
        wall_s.append(time.perf_counter() - wall)
    return {"loss": first_loss, "cpu_s": min(cpu_s), "wall_s": min(wall_s)}


def memory(framework: str, folder: Path, steps: str) -> dict[str, float]:
    start = FRAMEWORKS[framework](folder, 1)
    idle = idle_mb()
    step = start()
    for _ in range(int(steps)):
        step()
    return {"idle": idle, "peak": status_mb("VmHWM")}


def idle_mb() -> float:
    """Resident now; VmHWM starts again from here."""
    import gc

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return status_mb("VmRSS")


def status_mb(key: str) -> float:
    """A line of /proc/self/status; MB are 10^6 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6


def torch_model(name: str, batch: int) -> tuple[Any, Any, Any]:
    """Module, x, y; as engine and rivals all start from."""
    import torch

    from simulations import models

    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    if name in ("gru", "tfm"):
        module = models.CharGRU(80, 64, 64) if name == "gru" else models.CharTransformer(80)
        x, y = (torch.randint(0, 80, (batch, 64), generator=generator) for _ in range(2))
        return module, x, y
    module = {"lenet": models.LeNet, "resnet8": models.ResNet8, "mbv2": models.MobileNetV2Small}[name]()
    x = torch.randn(batch, *((1, 28, 28) if name == "lenet" else (3, 32, 32)), generator=generator)
    return module, x, torch.randint(0, 10, (batch,), generator=generator)


# Ours: a Program file, then NumPy and the engine.


def prepare_ours(folder: Path, module: Any, x: Any, y: Any, budget: str) -> dict[str, Any]:
    import edge_runtime as er

    optimizer = er.SGD(lr=LEARNING_RATE)
    program = er.build(module, x, batch_size=len(x), optimizer=optimizer, memory_budget=budget or None)
    program.save(folder / "program")
    _save_data(folder, x, y)
    return {"arena_bytes": program.peak_bytes, "plan": program.report.chosen.name}


def ours(folder: Path, threads: int) -> Start:
    import numpy as np

    import edge_runtime as er

    Program, Trainer = er.Program, er.Trainer  # noqa: N806  the lazy names: their imports happen here

    def start() -> Step:
        trainer = Trainer(Program.load(folder / "program"), threads=threads)
        x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
        return lambda: trainer.step(x, y)

    return start


def _save_data(folder: Path, x: Any, y: Any) -> None:
    import numpy as np

    np.save(folder / "x.npy", x.numpy())
    np.save(folder / "y.npy", y.numpy())


# PyTorch eager.


def torch_eager(folder: Path, threads: int) -> Start:
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    torch.mm(torch.ones(4, 4), torch.ones(4, 4))

    def start() -> Step:
        module, x, y = torch_model(*json.loads((folder / "cell.json").read_text()))
        optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, foreach=False)

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            output = module(x)
            loss = functional.cross_entropy(output.reshape(-1, output.shape[-1]), y.reshape(-1))
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    return start


# ONNX Runtime training: artefacts by its Python package, which imports torch; steps by its C bindings, without torch.


def prepare_ort(folder: Path, module: Any, x: Any, y: Any, _: str) -> dict[str, Any]:
    import onnx
    import torch
    from onnxruntime.training import artifacts

    class Logits(torch.nn.Module):
        """Rows of logits, as the loss of the artefacts wants them."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Any) -> Any:
            output = self.module(x)
            return output.reshape(-1, output.shape[-1])

    wrapped = Logits().train()
    torch.onnx.export(
        wrapped, (x,), str(folder / "forward.onnx"), dynamo=False, opset_version=15, do_constant_folding=False,
        training=torch.onnx.TrainingMode.TRAINING, input_names=["x"], output_names=["logits"],
    )  # fmt: skip
    forward = onnx.load(folder / "forward.onnx")
    trained = {name for name, _ in wrapped.named_parameters()}
    artifacts.generate_artifacts(
        forward,
        requires_grad=[one.name for one in forward.graph.initializer if one.name in trained],
        loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.SGD,
        artifact_directory=str(folder),
    )
    for name in ("training_model.onnx", "optimizer_model.onnx"):
        made = onnx.load(folder / name)
        made.ir_version = min(made.ir_version, 10)  # the newest that this runtime reads
        onnx.save(made, folder / name)
    _save_data(folder, x, y)
    return {"trained": len(trained)}


def ort(folder: Path, threads: int) -> Start:
    sys.modules["torch"] = None  # type: ignore[assignment]  # its package would import torch, and goes on without
    import numpy as np
    from onnxruntime.capi import _pybind_state as binding

    def start() -> Step:
        options = binding.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        cpu = binding.OrtDevice(binding.OrtDevice.cpu(), binding.OrtDevice.default_memory(), 0)
        state = binding.load_checkpoint(str(folder / "checkpoint"))
        module = binding.Module(str(folder / "training_model.onnx"), state, None, cpu, options)
        optimizer = binding.Optimizer(str(folder / "optimizer_model.onnx"), state, cpu, options)
        optimizer.set_learning_rate(LEARNING_RATE)
        x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy").reshape(-1)
        inputs = binding.OrtValueVector()
        for array in (x, y):
            inputs.push_back(binding.OrtValue.ortvalue_from_numpy(array, cpu))

        def step(_held: Any = (x, y, state, options)) -> float:  # the bindings keep no reference to an array
            outputs = binding.OrtValueVector()
            module.train_step_with_ort_values(inputs, outputs)
            optimizer.optimizer_step()
            module.lazy_reset_grad()
            return float(outputs[0].numpy())

        return step

    return start


# ExecuTorch: the joint graph ahead of time, its portable kernels.


def prepare_executorch(folder: Path, module: Any, x: Any, y: Any, _: str) -> dict[str, Any]:
    import torch
    from executorch.exir import EdgeCompileConfig, to_edge
    from torch.export.experimental import _export_forward_backward

    class WithLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Any, y: Any) -> Any:
            return torch.nn.functional.cross_entropy(self.module(x), y)

    joint = _export_forward_backward(torch.export.export(WithLoss().train(), (x, y), strict=False))
    lowered = to_edge(joint, compile_config=EdgeCompileConfig(_check_ir_validity=False)).to_executorch()
    (folder / "joint.pte").write_bytes(lowered.buffer)
    arena = sum(lowered.executorch_program.execution_plan[0].non_const_buffer_sizes)
    return {"arena_bytes": int(arena)}


def executorch(folder: Path, threads: int) -> Start:
    import torch
    from executorch.extension.training import _load_for_executorch_for_training, get_sgd_optimizer

    torch.set_num_threads(threads)

    def start() -> Step:
        _, x, y = torch_model(*json.loads((folder / "cell.json").read_text()))
        module = _load_for_executorch_for_training(str(folder / "joint.pte"))
        first_loss = float(module.forward_backward("forward", (x, y))[0])
        optimizer = get_sgd_optimizer(module.named_parameters(), LEARNING_RATE)
        losses = [first_loss]

        def step() -> float:
            loss = module.forward_backward("forward", (x, y))[0]
            optimizer.step(module.named_gradients())
            return losses.pop() if losses else float(loss)

        return step

    return start


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {"prepare": prepare, "time": time_step, "memory": memory}
PREPARE = {"ours": prepare_ours, "ort": prepare_ort, "executorch": prepare_executorch}
FRAMEWORKS: dict[str, Callable[[Path, int], Start]] = {
    "ours": ours, "torch": torch_eager, "ort": ort, "executorch": executorch,
}  # fmt: skip

if __name__ == "__main__":
    main()
