"""How much each client's update counts in a round, and which settings a strategy can hold its promise with."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.train.config import RoundTask, UplinkConfig
from edge_runtime.train.steps import check_linear, most_steps, step_weight
from server.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Counting:
    """By its examples; or each alike, with `equal`.

    With a `task` that asks for normalised updates, `steps` gives what a client's local steps add up to, and the mean of
    that over clients is tau_eff, which their mean update is to be multiplied with (Wang et al. 2020, equation 6).
    """

    equal: bool = False
    task: RoundTask | None = None

    def weight(self, examples: int) -> int:
        return 1 if self.equal else examples

    def steps(self, examples: int, steps: int) -> float:
        """|a_i|_1; PeerError if a client with so many examples can't have made so many steps."""
        if self.task is None:
            return 1.0
        most = most_steps(examples, self.task)
        if not 1 <= steps <= most:
            raise PeerError(f"update claims {steps} local steps; {examples} examples give 1 to {most}")
        return step_weight(self.task, steps)


def check_strategy(
    name: str, strategy: Strategy, task: RoundTask, uplink: UplinkConfig, *, protection: str, aggregator: str
) -> None:
    """ConfigError where the theory of SCAFFOLD or FedNova does not hold."""
    if not (strategy.control or strategy.normalised):
        return
    if protection:
        reason = (
            "a control variate is a second release of each client's data, and stays with it"
            if strategy.control
            else "the server would have to see every client's number of steps"
        )
        raise ConfigError(f"server.strategy = {name!r}: must be another one with {protection}: {reason}")
    if aggregator != "mean":
        raise ConfigError(
            f"robust.aggregator = {aggregator!r}: must be mean with server.strategy = {name!r}, whose "
            + ("control variate is the mean of all clients'" if strategy.control else "scale is the mean of all claims")
        )
    check_linear(name, task)
    if not strategy.control:
        return
    for key in ("clip_value", "clip_norm"):
        if bound := getattr(task.train, key):
            raise ConfigError(
                f"train.{key} = {bound:g}: must be 0 with server.strategy = {name!r}, which learns clients' gradients "
                "from how far they moved"
            )
    codec = uplink.build()
    # What such a codec adds is noise of the delta's own size: a control variate that follows it would not settle.
    if codec.names != ("float32",) and (codec.unbiased or "randk" in codec.names):
        raise ConfigError(
            f"uplink.codec = {','.join(codec.names)!r}: must be float32 or biased with server.strategy = {name!r}"
        )
