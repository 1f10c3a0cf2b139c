"""The builtin operators that a written file uses: their version, and the table of their options in the schema.

A version is the least that says all we use, so that old runtimes take the file too (tflite-runtime 2.14 does).
"""

from __future__ import annotations

from collections.abc import Mapping

OPERATORS: Mapping[str, tuple[int, str]] = {
    "ADD": (2, "AddOptions"),
    "AVERAGE_POOL_2D": (2, "Pool2DOptions"),
    "BATCH_MATMUL": (1, "BatchMatMulOptions"),
    "CONCATENATION": (2, "ConcatenationOptions"),
    "CONV_2D": (3, "Conv2DOptions"),
    "DEPTHWISE_CONV_2D": (3, "DepthwiseConv2DOptions"),
    "DEQUANTIZE": (2, "DequantizeOptions"),
    "EXP": (1, "ExpOptions"),
    "FULLY_CONNECTED": (5, "FullyConnectedOptions"),
    "GATHER": (1, "GatherOptions"),
    "GELU": (1, "GeluOptions"),
    "LOGISTIC": (2, ""),
    "MAXIMUM": (1, "MaximumMinimumOptions"),
    "MAX_POOL_2D": (2, "Pool2DOptions"),
    "MEAN": (2, "ReducerOptions"),
    "MINIMUM": (1, "MaximumMinimumOptions"),
    "MUL": (2, "MulOptions"),
    "PACK": (1, "PackOptions"),
    "PAD": (2, "PadOptions"),
    "PADV2": (2, "PadV2Options"),
    "QUANTIZE": (2, "QuantizeOptions"),
    "RELU": (2, ""),
    "RELU6": (2, ""),
    "RELU_0_TO_1": (1, ""),
    "RELU_N1_TO_1": (1, ""),
    "RESHAPE": (1, ""),
    "RSQRT": (1, ""),
    "SLICE": (2, "SliceOptions"),
    "SOFTMAX": (2, "SoftmaxOptions"),
    "SPLIT": (1, "SplitOptions"),
    "SQUARED_DIFFERENCE": (1, "SquaredDifferenceOptions"),
    "SUB": (1, "SubOptions"),
    "SUM": (1, "ReducerOptions"),
    "TANH": (2, ""),
    "TRANSPOSE": (2, "TransposeOptions"),
    "UNPACK": (1, "UnpackOptions"),
}
