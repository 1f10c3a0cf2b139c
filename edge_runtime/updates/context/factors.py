"""Matrices as few singular vectors: what local training adds to a weight matrix is close to a matrix of low rank.

The gradient of a linear or convolution layer is a sum of outer products of inputs and errors, and a client's inputs are
alike. Only directions and sizes are needed here, roughly: what is lost in them is coded as what it is, an error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_runtime.kernels.context import TAPS
from edge_runtime.updates.context.format import MAX_TAP, Matrix

_OVERSAMPLING = 8
MIN_COLUMNS = 48  # below it no lag is looked for
ALIKE = 0.25  # the least autocorrelation of a lag worth knowing


def right_factors(x: Matrix, count: int) -> tuple[NDArray[np.float64], Matrix]:
    """The `count` largest singular values, falling, and their right singular vectors times them: (count, columns).

    Few of many by one step of subspace iteration from a fixed random start (Halko, Martinsson, Tropp 2011, algorithm
    4.4), else from the Gram matrix of the shorter side.
    """
    rows, columns = x.shape
    if 3 * (count + _OVERSAMPLING) < min(rows, columns):
        start = np.random.default_rng(0).standard_normal((columns, count + _OVERSAMPLING), np.float32)
        basis, _ = np.linalg.qr(x @ start)
        basis, _ = np.linalg.qr(x @ (x.T @ basis))
        x, rows = basis.T @ x, basis.shape[1]
    if rows <= columns:
        values, left = _eigen(x @ x.T, count)
        return np.sqrt(values), left.T @ x
    values, right = _eigen(x.T @ x, count)
    return np.sqrt(values), np.ascontiguousarray(right.T) * np.sqrt(values).astype(np.float32)[:, None]


def left_factors(gram: Matrix, products: Matrix) -> Matrix:
    """The (rank, rows) left that minimises |x - leftᵀ right|, from gram = right rightᵀ and products = right xᵀ."""
    # What was quantised to nothing has no inverse: with a little on the diagonal it stays nothing.
    ridge = max(1e-6 * float(np.trace(gram)) / len(gram), 1e-30)
    return np.linalg.solve(gram + np.float32(ridge) * np.eye(len(gram), dtype=np.float32), products)


def strongest_lag(right: Matrix) -> int:
    """How far apart numbers of a row are that are most alike, neighbours aside: an image's width, say. 0 for none."""
    columns = right.shape[1]
    if columns < MIN_COLUMNS:
        return 0
    largest = right[:2]
    spectrum = np.abs(np.fft.rfft(largest, 2 * columns, axis=1)) ** 2
    alike = np.fft.irfft(spectrum.sum(axis=0))[3 : columns // 2]
    lag = 3 + int(np.argmax(alike))
    return lag if alike[lag - 3] > ALIKE * np.vdot(largest, largest) else 0


def likeness(right: Matrix) -> float:
    """The correlation of neighbours in a row, over the largest few components."""
    largest = right[:8]
    energy = np.einsum("ij,ij->i", largest, largest)
    alike = np.einsum("ij,ij->i", largest[:, 1:], largest[:, :-1])
    return float(np.mean(alike / np.maximum(energy, 1e-30)))


def prediction(x: Matrix, lag: int) -> tuple[int, tuple[int, ...]]:
    """Lag and taps, in eighths, that predict a number of a row from those 1, 2, lag, lag - 1 and lag + 1 before it.

    The least squares' normal equations with autocorrelations in them (Yule-Walker), of x after rounding: that is what a
    decoder has to predict from.
    """
    distances = [1, 2, lag, lag - 1, lag + 1] if lag else [1, 2]
    q = np.rint(x[:: len(x) // 4 or 1])  # a few components tell it
    apart = sorted({abs(a - b) for a in distances for b in distances} | set(distances))
    alike = {d: float(np.vdot(q[:, d:], q[:, : q.shape[1] - d])) for d in apart}
    normal = np.array([[alike[abs(a - b)] for b in distances] for a in distances])
    normal += np.eye(len(normal)) * q.size / 12  # what rounding has hidden
    solved = np.linalg.solve(normal, [alike[d] for d in distances])
    taps = np.clip(np.rint(8 * solved), -MAX_TAP, MAX_TAP).astype(int).tolist()
    if not any(taps):
        lag = 0
    return lag, tuple(taps + [0] * (TAPS - len(taps)))


def _eigen(gram: Matrix, count: int) -> tuple[NDArray[np.float64], Matrix]:
    """The `count` largest eigenvalues, falling, none below 0, and their eigenvectors as columns."""
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values[::-1][:count], 0).astype(np.float64), vectors[:, ::-1][:, :count]
