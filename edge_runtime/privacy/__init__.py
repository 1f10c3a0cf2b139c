"""Differential privacy in whole numbers: samplers, clipping, DP-FTRL, a ledger of what was released, its accountant.

A leaf: numpy and cryptography. The accountant alone asks for dp-accounting, and `blt` for scipy, when called.
"""

from edge_runtime.privacy.accountant import epsilon, noise_for
from edge_runtime.privacy.clipping import AdaptiveClip, clip_by_norm, conditional_round, l1_bound, l2_bound
from edge_runtime.privacy.ledger import DistributedSum, Event, Ledger, MatrixMechanism, SampledGaussian
from edge_runtime.privacy.matrix import MatrixStream, Strategy, banded, blt
from edge_runtime.privacy.noise import TableSampler, discrete_gaussian, rounded_gaussian, skellam

__all__ = [
    "AdaptiveClip",
    "DistributedSum",
    "Event",
    "Ledger",
    "MatrixMechanism",
    "MatrixStream",
    "SampledGaussian",
    "Strategy",
    "TableSampler",
    "banded",
    "blt",
    "clip_by_norm",
    "conditional_round",
    "discrete_gaussian",
    "epsilon",
    "l1_bound",
    "l2_bound",
    "noise_for",
    "rounded_gaussian",
    "skellam",
]
