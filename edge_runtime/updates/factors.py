"""Matrices as few singular vectors: what local training adds to a weight matrix is close to a matrix of low rank.

The gradient of a linear or convolution layer is a sum of outer products of inputs and errors, and a client's inputs are
alike. Only directions and sizes are needed here, roughly: what is lost in them is coded as what it is, an error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

MAX_RANK = 64
_SMALL_GRAM = 160  # up to this side, all eigenvectors of the Gram matrix cost less than iterating
_OVERSAMPLING = 8
MIN_COLUMNS = 48  # below it no lag is looked for
ALIKE = 0.25  # the least autocorrelation of a lag worth knowing
MAX_TAP = 16


def right_factors(x: Matrix) -> tuple[NDArray[np.float64], Matrix]:
    """The largest singular values, falling, and their right singular vectors times them: (k,) and (k, columns).

    k is at most min(rows, columns, 64). Exact up to rounding for matrices with a side of up to 160; others by one step
    of subspace iteration from a fixed random start (Halko, Martinsson, Tropp 2011, algorithm 4.4).
    """
    rows, columns = x.shape
    if min(rows, columns) <= _SMALL_GRAM:
        if rows <= columns:
            _, left = _eigen(x @ x.T)
            return _sorted(left.T @ x)
        values, right = _eigen(x.T @ x)
        return _sorted(np.sqrt(values).astype(np.float32)[:, None] * right.T)
    start = np.random.default_rng(0).standard_normal((columns, MAX_RANK + _OVERSAMPLING), np.float32)
    basis, _ = np.linalg.qr(x @ start)
    basis, _ = np.linalg.qr(x @ (x.T @ basis))
    inside = basis.T @ x
    _, left = _eigen(inside @ inside.T)
    return _sorted(left.T @ inside)


def left_factors(gram: Matrix, products: Matrix) -> Matrix:
    """The (rank, rows) left that minimises |x - leftᵀ right|, from gram = right rightᵀ and products = right xᵀ."""
    # What was quantised to nothing has no inverse: with a little on the diagonal it stays nothing.
    ridge = max(1e-6 * float(np.trace(gram)) / len(gram), 1e-30)
    return np.linalg.solve(gram.astype(np.float64) + ridge * np.eye(len(gram)), products).astype(np.float32)


def strongest_lag(right: Matrix) -> int:
    """How far apart numbers of a row are that are most alike, neighbours aside: an image's width, say. 0 for none."""
    columns = right.shape[1]
    if columns < MIN_COLUMNS:
        return 0
    spectrum = np.abs(np.fft.rfft(right[:4], 2 * columns, axis=1)) ** 2
    alike = np.fft.irfft(spectrum.sum(axis=0))[3 : columns // 2]
    lag = 3 + int(np.argmax(alike))
    return lag if alike[lag - 3] > ALIKE * np.sum(right[:4] ** 2) else 0


def prediction(x: Matrix, lag: int) -> tuple[int, tuple[int, ...]]:
    """Lag and taps, in eighths, that predict a number of a row from those 1, 2, lag, lag - 1 and lag + 1 before it.

    The least squares' normal equations with autocorrelations in them (Yule-Walker), of x after rounding: that is what a
    decoder has to predict from.
    """
    distances = [1, 2, lag, lag - 1, lag + 1] if lag else [1, 2]
    q = np.rint(x)
    apart = sorted({abs(a - b) for a in distances for b in distances} | set(distances))
    alike = {d: float(np.vdot(q[:, d:], q[:, : q.shape[1] - d])) for d in apart}
    normal = np.array([[alike[abs(a - b)] for b in distances] for a in distances])
    normal += np.eye(len(normal)) * q.size / 12  # what rounding has hidden
    solved = np.linalg.solve(normal, [alike[d] for d in distances])
    taps = np.clip(np.rint(8 * solved), -MAX_TAP, MAX_TAP).astype(int).tolist()
    if not any(taps):
        lag = 0
    return lag, tuple(taps + [0] * (5 - len(taps)))


def _eigen(gram: Matrix) -> tuple[NDArray[np.float64], Matrix]:
    """Up to 64 largest eigenvalues, falling, none below 0, and their eigenvectors as columns."""
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values[::-1][:MAX_RANK], 0).astype(np.float64), vectors[:, ::-1][:, :MAX_RANK]


def _sorted(scaled: Matrix) -> tuple[NDArray[np.float64], Matrix]:
    """Rows by falling norm, and the norms."""
    sizes = np.sqrt(np.einsum("ij,ij->i", scaled, scaled, dtype=np.float64))
    order = np.argsort(-sizes, kind="stable")
    return sizes[order], np.ascontiguousarray(scaled[order])
