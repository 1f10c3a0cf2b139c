"""Which model files this device has a runtime for, and whether the runtime is as new as a manifest asks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata

from edge_runtime.deploy.runner import BACKENDS
from edge_runtime.deploy.trust.manifest import Manifest
from edge_runtime.errors import ArtefactError

# File suffix -> packages that run it, any one of them. `minimum` in a manifest has the suffix without its dot.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    ".hedgerow": ("hedgerow",),
    ".onnx": ("onnxruntime",),
    ".tflite": ("ai-edge-litert", "tflite-runtime"),
}


def wanted_model(manifest: Manifest, suffixes: Sequence[str]) -> str:
    """The model file for this device: the first suffix it has a runtime for, and the smallest such file.

    Raises:
        ArtefactError: the artefact has none, or asks for a newer runtime.

    """
    _check_minimum(manifest, "hedgerow", ("hedgerow",))
    for suffix in suffixes:
        names = manifest.models(suffix)
        if names and has_runtime(suffix):
            _check_minimum(manifest, suffix[1:], PACKAGES[suffix])
            return min(names, key=lambda name: (manifest.files[name].nbytes, name))
    raise ArtefactError(f"{manifest.name} {manifest.version}: no file that this device has a runtime for ({suffixes})")


def has_runtime(suffix: str) -> bool:
    """Whether this device can run files of that suffix."""
    return suffix in BACKENDS and any(map(_version, PACKAGES[suffix]))


def _check_minimum(manifest: Manifest, key: str, packages: Sequence[str]) -> None:
    minimum = manifest.minimum.get(key)
    versions = {package: version for package in packages if (version := _version(package))}
    if minimum and not any(_numbers(version) >= _numbers(minimum) for version in versions.values()):
        here = ", ".join(f"{package} {version}" for package, version in versions.items()) or "none"
        raise ArtefactError(f"{manifest.name} {manifest.version}: needs {key} {minimum}; here is {here}; upgrade first")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
