"""Differential privacy in whole numbers: samplers, clipping, the ledger of what was released, and its accountant.

A leaf: numpy and cryptography. The accountant alone asks for dp-accounting, when it is called.
"""

from edge_runtime.privacy.accountant import epsilon, noise_for
from edge_runtime.privacy.clipping import AdaptiveClip, clip_by_norm, conditional_round, l1_bound, l2_bound
from edge_runtime.privacy.ledger import DistributedSum, Event, Ledger, SampledGaussian, TreeMechanism
from edge_runtime.privacy.noise import TableSampler, discrete_gaussian, rounded_gaussian, skellam

__all__ = [
    "AdaptiveClip",
    "DistributedSum",
    "Event",
    "Ledger",
    "SampledGaussian",
    "TableSampler",
    "TreeMechanism",
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
