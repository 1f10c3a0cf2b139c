"""What a runtime does for a `Runner`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Spec:
    """An input or output: its name, dtype "f32" or "i64", and shape; -1 for a batch of any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Backend(Protocol):
    """A loaded model. Made from the bytes of its file and a number of threads; ArtefactError if it is refused."""

    input: Spec
    output: Spec

    def predict(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        """The output for inputs of `input.dtype` whose batch fits `input.shape`."""
