"""Which version of the artefact devices say they run, in their answers to rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from server.checkpoint import Tree
from server.link import Answer, read_running


class Fleet:
    """The last word of every device that says its version; those that hold no artefacts say none."""

    def __init__(self) -> None:
        self._running: dict[int, int] = {}

    def hear(self, answer: Answer) -> None:
        """Take note of a train reply."""
        version = read_running(answer.content) if answer.content else None
        if version is not None:
            self._running[answer.node] = version

    def eligible(self, nodes: Sequence[int]) -> list[int]:
        """Those of the nodes that may be asked now."""
        return list(nodes)

    @property
    def versions(self) -> Mapping[str, int]:
        """How many devices run which version; "0" is none."""
        return {str(version): count for version, count in sorted(Counter(self._running.values()).items())}

    def state(self) -> Tree:
        return {"running": {str(node): version for node, version in self._running.items()}}

    def restore(self, state: Tree) -> None:
        self._running = {int(node): version for node, version in state["running"].items()}
