"""ONNX: one table row per op of the IR, and quantised values as QuantizeLinear/DequantizeLinear pairs."""

from edge_runtime.deploy.formats.onnx.writer import write_onnx

__all__ = ["write_onnx"]
