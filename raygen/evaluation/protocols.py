"""The protocols of the networks of a `ScoreConfig`, for METRICS."""

from collections.abc import Mapping
from typing import Any, Protocol

from raygen.evaluation.config import ScoreConfig
from raygen.extractors.bundled_protocol import CLASSIFIER, PARSER, bundled_protocol
from raygen.extractors.config import BundledNetworkConfig

__all__ = ["FeatureNetwork", "protocols_of"]


class FeatureNetwork(Protocol):
    """What metrics over features need to know of their network."""

    @property
    def name(self) -> str:
        """Name of the network, which the names of its scores end with."""
        ...

    @property
    def metric(self) -> str:
        """Name of a Fréchet distance over its features."""
        ...

    def protocol(self) -> Mapping[str, Any]:
        """The settings that its numbers depend on."""
        ...


def protocols_of(score: ScoreConfig) -> tuple[dict[str, Mapping[str, Any]], FeatureNetwork | None]:
    """The protocol of each network by its name, and the network of the features.

    Networks are loaded only where one of them is not bundled: importing torch takes longer than most metrics.
    """
    networks = {name: getattr(score, name) for name in ("parser", "features", "classifier", "text", "lpips")}
    used = [config for config in networks.values() if config is not None]
    others = score.identity is not None or score.scorers
    if others or not all(isinstance(config, BundledNetworkConfig) for config in used):
        from raygen.evaluation.scoring import Scorer

        scorer = Scorer(score, run_id="")
        return scorer.protocols(), scorer.features
    names = {"parser": PARSER, "features": PARSER, "classifier": CLASSIFIER}
    described = {name: bundled_protocol(config, names[name]) for name, config in networks.items() if config is not None}
    return {network.name: network.protocol() for network in described.values()}, described.get("features")
