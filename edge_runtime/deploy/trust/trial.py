"""What runs in the child of `sandbox`: set the limits, check the model's structure, run it on its golden vectors.

The structure is checked here rather than in the parent, so that what our own reader might take is limited too.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from edge_runtime.errors import EdgeRuntimeError

REPEATS = 5


def main(request: dict[str, Any]) -> dict[str, Any]:
    """The report, or {"error": text}."""
    _limit(**request["limits"])
    try:
        return _tried(Path(request["model"]), Path(request["golden"]), *request["sha256"])
    except MemoryError:
        return {"error": f"it needs more than {request['limits']['memory_bytes'] >> 20} MiB of memory"}
    except EdgeRuntimeError as error:
        return {"error": str(error)}
    except Exception as error:  # a runtime may raise anything; the parent wants a line, not a traceback
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}


def _limit(memory_bytes: int, cpu_s: int, wall_s: float, open_files: int) -> None:
    """For good: soft and hard limits alike. The parent keeps the wall clock; the alarm is for when that was killed."""
    from edge_runtime.deploy.trust.sandbox import MAX_REPORT_BYTES

    signal.alarm(math.ceil(wall_s) + 1)
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_FSIZE: MAX_REPORT_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for which, limit in limits.items():
        _, hard = resource.getrlimit(which)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))


def _tried(model: Path, golden: Path, model_sha256: str, golden_sha256: str) -> dict[str, Any]:
    import numpy as np

    from edge_runtime.deploy.runner import Runner
    from edge_runtime.deploy.trust.allow_list import check_model
    from edge_runtime.deploy.trust.digest import sha256_hex
    from edge_runtime.deploy.trust.golden import INPUT, output_name
    from edge_runtime.deploy.trust.tensors import read_tensors

    content, vectors = model.read_bytes(), golden.read_bytes()
    if (sha256_hex(content), sha256_hex(vectors)) != (model_sha256, golden_sha256):
        return {"error": "the files changed after they were checked"}
    check_model(content, model.suffix)
    arrays = read_tensors(vectors, golden.name)
    if not {INPUT, output_name(model.name)} <= arrays.keys():
        return {"error": f"{golden.name} has no vectors for it"}
    x, expected = arrays[INPUT], arrays[output_name(model.name)]
    runner = Runner.of(content, model.suffix)
    y = runner.predict(x)
    if y.shape != expected.shape or not np.isfinite(y).all():
        return {"error": f"it answers {y.shape}, finite: {bool(np.isfinite(y).all())}; {expected.shape} is golden"}
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        runner.predict(x[:1])
        times.append(time.perf_counter() - start)
    return {
        "difference": float(np.abs(y - expected.astype(np.float32)).max()),
        "latency_s": sorted(times)[REPEATS // 2],
        "peak_rss_bytes": peak_rss_bytes(),
        "output_sha256": sha256_hex(y.tobytes()),
    }


def peak_rss_bytes() -> int:
    """The most memory that this process had at once since it began to run its program.

    Not getrusage's ru_maxrss, where there is a choice: in a process that another started, that is at least what the
    other one had.
    """
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))))
