"""In which order a tensor holds the dims of a value: dim i of the tensor is dim order[i] of the value."""

from __future__ import annotations

from edge_runtime.ir.graph import Shape

Order = tuple[int, ...]
NHWC: Order = (0, 2, 3, 1)  # of a value (N, C, H, W)
OHWI: Order = (0, 2, 3, 1)  # of a weight (O, I, H, W)
IHWO: Order = (1, 2, 3, 0)  # of a depthwise weight (C, 1, H, W)


def plain(rank: int) -> Order:
    return tuple(range(rank))


def ordered(shape: Shape, order: Order) -> Shape:
    """The shape of a tensor that holds a value of `shape` in `order`."""
    return tuple(shape[dim] for dim in order)


def steps(held: Order, wanted: Order) -> Order:
    """The transposition of the tensor from one order to another."""
    return tuple(held.index(dim) for dim in wanted)


def moves_nothing(shape: Shape, held: Order, wanted: Order) -> bool:
    """Whether both orders have the value's bytes in the same places, for only dims of 1 change theirs."""
    return [dim for dim in held if shape[dim] > 1] == [dim for dim in wanted if shape[dim] > 1]


def transposed(order: Order, by: Order) -> Order:
    """The order in which the same tensor holds the value transposed `by`."""
    return tuple(by.index(dim) for dim in order)


def without(order: Order, dims: tuple[int, ...]) -> Order:
    """The order of what is left when `dims` of the value are gone."""
    left = [dim for dim in range(len(order)) if dim not in dims]
    return tuple(left.index(dim) for dim in order if dim not in dims)


def border(size: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Zeros that a sliding window reads before and behind one axis that has `padding` on both sides."""
    count = (size + 2 * padding - kernel) // stride + 1
    return padding, max((count - 1) * stride + kernel - size - padding, 0)


def is_same(size: int, kernel: int, stride: int, padding: int) -> bool:
    """Whether TFLite's padding SAME, which puts the larger half of its zeros behind, is this one."""
    count = -(-size // stride)
    total = max((count - 1) * stride + kernel - size, 0)
    return count == (size + 2 * padding - kernel) // stride + 1 and total // 2 == padding
