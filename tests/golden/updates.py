"""One payload per codec as a file, beside the values that it decodes to: what the wire format is, to the byte.

`python tests/golden/updates.py` writes them again; a test says when that is due, which for a codec that has been
released means: never without a new name or a new version of the envelope. Values follow from a formula.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_runtime.updates import CODECS, TensorLayout, make_codec

HERE = Path(__file__).parent / "updates"
LAYOUT = TensorLayout.of(
    {
        "conv.weight": (6, 3, 2, 2),
        "conv.bias": (6,),
        "scale": (),
        "empty": (0, 4),
        "out.weight": (5, 19),
        "hidden.weight": (20, 24),
    }
)
ROUND, SEED = 300, 7
# File name -> codec and its options. Each codec by itself, and what its defaults do not show.
CASES: dict[str, tuple[str, dict[str, float]]] = {
    **{name: (name, {}) for name in CODECS},
    "context": ("context", {"bits": 3}),  # a quarter of a bit would leave nothing of so few values
    "hadamard_unbiased": ("hadamard", {"bits": 4, "unbiased": True}),
    "randk_uniform": ("randk,uniform", {"fraction": 0.25, "bits": 3}),
    "topk_int8": ("topk,int8", {"fraction": 0.1}),
}


def values() -> NDArray[np.float32]:
    """Binary fractions of many sizes, zeros and a matrix of rank 1 among them: exact in float32."""
    index = np.arange(LAYOUT.size)
    x = np.ldexp((index * 37 % 101 - 50) / 64, -(index % 5)).astype(np.float32) * (index % 7 != 3)
    LAYOUT.views(x)["hidden.weight"][...] = np.outer(np.arange(20) % 7 - 3, np.arange(24) % 5 - 2) / 64
    return x


def make() -> dict[str, bytes]:
    """The contents of each file, by name."""
    files = {}
    for case, (names, options) in CASES.items():
        codec = make_codec(names, **options)
        payload = codec.encode_vector(values(), LAYOUT, round_number=ROUND, seed=SEED)
        files[f"{case}.bin"] = payload
        files[f"{case}.decoded.bin"] = codec.decode_vector(payload, LAYOUT).astype("<f4").tobytes()
    return files


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name, content in make().items():
        (HERE / name).write_bytes(content)
        print(f"{name}: {len(content)} bytes")
