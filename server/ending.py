"""What follows the last round: the model's file, its exports, the roll-out, and the closing figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edge_runtime.errors import RunError
from edge_runtime.train.batches import Examples
from edge_runtime.train.loop import State
from server import results
from server.artefacts import export_and_check
from server.config import ServerConfig
from server.model import GlobalModel
from server.private import Privacy
from server.run_store import RunStore, is_disk_trouble, model_bytes, sha256

EVALUATED_ON = {"central": "held-out data", "clients": "clients' own training data", "none": None}


def evaluated_on(config: ServerConfig) -> str | None:
    """Whose examples the rounds' loss and accuracy are on."""
    if config.server.evaluate == "clients" and config.personal.enabled:
        return "clients' own held-out data"
    return EVALUATED_ON[config.server.evaluate]


def write_model(
    config: ServerConfig,
    rows: Sequence[results.RoundRow],
    figures: Mapping[str, float | None],
    model: GlobalModel,
    privacy: Privacy,
    store: RunStore,
    stopped: str | None,
) -> dict[str, Any]:
    """Write `model.safetensors`, and begin `run.json`'s `final`; `figures` are its loss and accuracy, where known.

    Raises:
        RunError: no round moved the model.

    """
    content = model_bytes(model.state_dict())
    store.write("model.safetensors", content)
    applied = sum(row.applied for row in rows)
    if not applied:
        raise RunError(stopped if stopped and not rows else _why_nothing_was_applied(rows, store))
    private = privacy.final()
    return {
        "accuracy": results.finite(figures.get("accuracy")),
        "loss": results.finite(figures.get("loss")),
        "evaluated_on": evaluated_on(config),
        "rounds_applied": applied,
        "uplink_bytes": sum(row.uplink_bytes for row in rows),
        "downlink_bytes": sum(row.downlink_bytes for row in rows),
        "epsilon": results.finite(privacy.epsilon),
        "delta": private["delta"] if private else None,
        "privacy": private,
        "stopped": stopped,
        "parameters": model.size,
        "model_sha256": sha256(content),
        "files": {"model.safetensors": len(content)},
    }


def export(config: ServerConfig, state: State, test: Examples | None, store: RunStore) -> dict[str, Any]:
    """`final`'s entries of the exported files and their figures; what an earlier attempt has exported stands.

    A failure here must not cost the trained model. A full disk costs nothing: the run can be resumed.

    Raises:
        RunError: the run directory cannot be written.

    """
    done = store.last_event("artefact")
    if done is not None:
        exported = done.data
    else:
        try:
            exported = export_and_check(config, state, test, store.directory)
        except Exception as error:  # exporter and runtime raise many private types
            text = " ".join(f"{type(error).__name__}: {error}".split())
            if is_disk_trouble(error):
                raise RunError(f"{store.directory}: the export cannot be written ({text})") from error
            store.append("export_failed", {"error": text})
            exported = {"error": text}
        else:
            store.append("artefact", exported)
    int8 = [row for row in exported.get("formats", {}).values() if row.get("precision") == "int8"]
    return {
        "deploy": exported,
        "int8_accuracy": {row["format"]: row["accuracy"] for row in int8 if row["refused"] is None},
    }


def _why_nothing_was_applied(rows: Sequence[results.RoundRow], store: RunStore) -> str:
    """No round moved the model: the commonest reason, and where the rest stands."""
    reasons = Counter(failure.reason for row in rows for failure in row.failures)
    reasons.update(row.unchanged for row in rows if row.unchanged and not row.failures)
    reason, count = reasons.most_common(1)[0]
    where = store.directory / "run.json"
    return f"no round could be applied; {count} times the reason was: {reason} ({where} names every failure)"
