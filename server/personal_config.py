"""The `[personal]` table of a scenario: layers that each client keeps for itself, and training after the last round."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.config import key
from edge_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PersonalConfig:
    """Personalisation; see docs/strategies.md.

    `layers` are names of tensors, or patterns such as `out.*`: they are trained by each client and kept there, neither
    sent up nor overwritten (Arivazhagan et al. 2019 with the last layers, Liang et al. 2020 with the first). After the
    last round every client that is online trains for `fine_tune_epochs` on the whole model or, with "head", on its last
    layer, for itself. `holdout` is the share of each client's examples that it never trains on, and measures with.
    """

    layers: tuple[str, ...] = key(())
    fine_tune_epochs: int = key(0, low=0, high=10_000)
    fine_tune: str = key("all", choices=("all", "head"))
    holdout: float = key(0.2, above=0, below=1)

    @property
    def enabled(self) -> bool:
        return bool(self.layers or self.fine_tune_epochs)


def check_personal(
    personal: PersonalConfig, *, protected: bool, evaluate: str, formats: tuple[str, ...], lora_rank: int
) -> None:
    """Refuse what would say less, or more, than it seems to.

    Raises:
        ConfigError: names the keys and what to do instead.

    """
    if protected and personal.fine_tune_epochs:
        raise ConfigError(
            f"personal.fine_tune_epochs = {personal.fine_tune_epochs}: must be 0 with secure aggregation or privacy, "
            "which keep figures of single clients from the server"
        )
    if personal.layers and evaluate == "central":
        raise ConfigError(
            'server.evaluate = "central": must be "clients" or "none" with personal.layers: the server\'s model has '
            "only the values there that these layers start from"
        )
    if personal.layers and formats:
        raise ConfigError(
            f'deploy.formats = {",".join(formats)!r}: must be "" with personal.layers, which the server never has: '
            "its model is no model to hand out"
        )
    if personal.fine_tune_epochs and personal.fine_tune == "head" and lora_rank:
        raise ConfigError(
            f'personal.fine_tune = "head": must be "all" with train.lora_rank = {lora_rank}; adapters are what trains'
        )
