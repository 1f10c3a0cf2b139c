"""From trained weights to a model file that a device checks and runs.

`export` needs torch and onnx (the server's half); `Runner` needs onnxruntime alone (the device's half).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.deploy.artefact import Artefact
    from edge_runtime.deploy.exporter import export
    from edge_runtime.deploy.runner import Runner

__all__ = ["Artefact", "Runner", "export"]


def __getattr__(name: str) -> Any:
    if name == "export":
        from edge_runtime.deploy.exporter import export

        return export
    if name == "Runner":
        from edge_runtime.deploy.runner import Runner

        return Runner
    if name == "Artefact":
        from edge_runtime.deploy.artefact import Artefact

        return Artefact
    raise AttributeError(f"module 'edge_runtime.deploy' has no attribute {name!r}")
