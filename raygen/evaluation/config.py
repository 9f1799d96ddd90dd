"""Settings of measurements and comparisons, without the networks that measure: nothing here imports torch."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import Field, model_validator

from raygen.core.config import Config, nearest
from raygen.core.face_labels import ATTRIBUTES, CLASSES
from raygen.core.location import Location
from raygen.extractors.config import (
    BundledNetworkConfig,
    ClipConfig,
    FaceEmbedderConfig,
    FeatureConfig,
    InceptionConfig,
    LPIPSConfig,
    PackageConfig,
    PackageScorerConfig,
    ParserConfig,
)
from raygen.extractors.digests import by_content, pinned
from raygen.metrics.registry import REGISTRY, family

__all__ = [
    "FeatureMetricsConfig",
    "MemorizationConfig",
    "PairwiseConfig",
    "PublishedConfig",
    "ScoreConfig",
    "VerificationConfig",
    "check_slices",
]


#: Kind of the bundled network of each setting; empty where there is none.
BUNDLED_KINDS: Final = {"parser": "parser", "features": "parser", "classifier": "classifier", "text": "", "lpips": ""}


class ScoreConfig(Config):
    """Which networks measure, and which measurements are made. None leaves a measurement out."""

    parser: ParserConfig | None = Field(
        default_factory=BundledNetworkConfig,
        description="face parser that compares pictures with their masks (mIoU); null does not",
    )
    features: FeatureConfig | None = Field(
        default_factory=BundledNetworkConfig,
        description="network whose features the Fréchet distance compares; null computes none",
    )
    classifier: BundledNetworkConfig | None = Field(
        default_factory=BundledNetworkConfig,
        description="classifier that compares pictures with their 40 attributes; null does not",
    )
    face_features: bool = Field(
        False, description="also compute the features of the face only, in the bounding box of the wanted mask"
    )
    similarity: bool = Field(False, description="SSIM between a picture and the face that its `source` names")
    text: ClipConfig | None = Field(
        None, description="CLIP model that measures how well pictures fit their text; default none"
    )
    logits: bool = Field(False, description="also store the class logits of Inception, for the inception score")
    reconstruction: bool = Field(
        False,
        description="SSIM, PSNR, and LPIPS if `lpips` is set, between a picture and the face that its "
        "`source` names; in a round trip, its input",
    )
    lpips: LPIPSConfig | None = Field(None, description="LPIPS network for `reconstruction`; default none")
    condition_size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="side of the masks that the model reads, such as 32: mIoU is also measured at that "
        "size; default none",
    )
    identity: FaceEmbedderConfig | None = Field(
        None, description="face embedder, for identity gates and verification; default none"
    )

    scorers: tuple[PackageScorerConfig, ...] = Field(
        (), description="networks of installed packages that give each picture a number, such as its quality"
    )

    @model_validator(mode="after")
    def _logits_are_inceptions(self) -> "ScoreConfig":
        if self.logits and not isinstance(self.features, InceptionConfig):
            raise ValueError("`logits` needs `features: {kind: inception, …}`")
        if self.lpips is not None and not self.reconstruction:
            raise ValueError("`lpips` is for `reconstruction: true`")
        if self.condition_size is not None and self.parser is None:
            raise ValueError("`condition_size` needs a `parser`")
        if len(names := [scorer.name for scorer in self.scorers]) != len(set(names)):
            raise ValueError("`scorers` names a network twice")
        return self

    def by_content(self) -> dict[str, Any]:
        """The settings that plans and references record: networks by the sha256 of their weights, not by their path."""
        settings = self.model_dump(mode="json")
        for name, kind in BUNDLED_KINDS.items():
            if (network := getattr(self, name)) is not None:
                settings[name] = by_content(network, kind)
        if self.identity is not None:
            settings["identity"]["network"] = by_content(self.identity.network, "embedder")
        if self.scorers:
            settings["scorers"] = [by_content(scorer, "scorer") for scorer in self.scorers]
        else:
            del settings["scorers"]  # so that runs without any keep their names
        return settings

    def pinned(self, content: Mapping[str, Any]) -> "ScoreConfig":
        """With the whole sha256 of parsers, embedders and networks of packages; `content`: of `by_content`."""
        parts: dict[str, Any] = {}
        if self.parser is not None:
            parts["parser"] = pinned(self.parser, content["parser"])
        if isinstance(self.features, PackageConfig):
            parts["features"] = pinned(self.features, content["features"])
        if self.identity is not None:
            network = pinned(self.identity.network, content["identity"]["network"])
            parts["identity"] = self.identity.model_copy(update={"network": network})
        parts["scorers"] = tuple(map(pinned, self.scorers, content.get("scorers", ())))
        return self.model_copy(update=parts)

    def measures(self, prefix: str) -> bool:
        """Whether scores are made whose names begin with `prefix`, such as `segmentation:`, for rows that have it."""
        if prefix.startswith("score:"):
            return prefix in {f"score:{scorer.name}" for scorer in self.scorers}
        parts = {
            "segmentation:": self.parser,
            "attributes:": self.classifier,
            "clip:": self.text,
            "identity:": self.identity,
            "ssim:": self.to_source,
        }
        return parts.get(prefix, self) is not None

    @property
    def to_source(self) -> str | None:
        """The setting that asks for comparisons with the `source` of rows; None where none does."""
        return "reconstruction" if self.reconstruction else "similarity" if self.similarity else None


class FeatureMetricsConfig(Config):
    """Which numbers, besides the Fréchet distance, compare the features of two sets."""

    kid: bool = Field(True, description="KID, unbiased over all pairs, with a confidence interval; suited to few rows")
    kid_subsets: bool = Field(
        False, description="KID as mean and deviation over 100 random subsets of 1,000 rows, as in other tools"
    )
    knn: int | None = Field(
        5,
        ge=1,
        le=100,
        description="number of neighbours k of precision, recall, density and coverage; null computes none",
    )
    fid_infinity: bool = Field(
        False, description="Fréchet distance extrapolated to infinitely many rows; needs 2.5 rows per feature value"
    )


class PairwiseConfig(Config):
    """What to compare. Pictures of the two runs belong together by `sample_id`, so their noise is the same."""

    baseline: Location | None = Field(
        None,
        description="folder of a generate run with the same rows, to measure the change inside and "
        "outside of `style_parts` (leakage)",
    )
    margin: int = Field(0, ge=0, le=256, description="pixels around the border of the parts that are left out")
    diversity: bool = Field(False, description="mean distance between the pictures of a group_id")
    lpips: LPIPSConfig | None = Field(None, description="LPIPS network: the distance is LPIPS in place of 1 - SSIM")

    def by_content(self, baseline: str | None) -> dict[str, Any]:
        """The settings that plans record: the content of the `baseline`, networks by the sha256 of their weights."""
        lpips = None if self.lpips is None else by_content(self.lpips, "")
        return {**self.model_dump(mode="json"), "baseline": baseline, "lpips": lpips}

    @model_validator(mode="after")
    def _measures_something(self) -> "PairwiseConfig":
        if self.baseline is None and not self.diversity:
            raise ValueError("name a `baseline`, or ask for `diversity`")
        return self


class MemorizationConfig(Config):
    """The training pictures. Where `reference` is the same data set, its other splits are what was held out."""

    faces: Location = Field(..., description="folder of the ingest run with the training faces")
    split: str | None = Field("train", description="split that the model was trained on; default: all faces")
    q: float = Field(
        0.01,
        gt=0,
        lt=0.5,
        description="quantile of the held-out faces' distances to the training faces below which a "
        "picture counts as memorized",
    )


class VerificationConfig(Config):
    """Settings of face verification."""

    far: tuple[float, ...] = Field(
        (1e-3, 1e-4), description="false accept rates at which the true accept rate (TAR) is reported"
    )
    most: int = Field(
        20_000,
        ge=2,
        description="largest number of pictures that are compared, of whole people; time grows with its square",
    )
    pairs: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="number of pairs in pairs.txt and pairs.csv, half of them genuine, whose accuracy is "
        "reported; 0 draws none",
    )
    folds: int = Field(
        10, ge=1, le=100, description="number of folds of the pairs, as in LFW; two folds share no person"
    )
    seed: int = Field(0, ge=0, description="seed of the drawn pairs")


#: Metrics that are shares, which papers print in percent.
SHARES: Final = (
    *("miou", "pixel_accuracy", "mask_accuracy", "class_accuracy", "frequency_iou", "attribute_accuracy"),
    *("attribute_balanced", "ssim", "lpips", "clip_score", "precision", "recall", "coverage", "tar", "eer"),
)


class PublishedConfig(Config):
    """Values that a paper prints. They are shown beside the measured ones and enter no METRICS."""

    source: str = Field(..., min_length=1, description="paper, table and row that the values are from")
    values: dict[str, float] = Field(
        ...,
        min_length=1,
        description="published values by metric, such as {fid: 16.85, miou: 0.8178}; shares are from 0 to 1",
    )
    measured: str = Field(
        ..., min_length=1, description="how the source measured them: pictures, split, networks, as far as it says"
    )

    @model_validator(mode="after")
    def _values_are_metrics(self) -> "PublishedConfig":
        for name, value in self.values.items():
            kind = family(name)
            if kind not in REGISTRY:
                raise ValueError(
                    f"values: {name!r} is no metric{nearest(name, REGISTRY)}; known: {', '.join(REGISTRY)}"
                )
            if not math.isfinite(value):
                raise ValueError(f"values: {name}: {value} is no number")
            if kind in SHARES and not -1 <= value <= 1:
                raise ValueError(f"values: {name} is a share: write {value / 100:g} for {value:g} %")
        return self


IDENTITY: Final = "identity"


def check_slices(names: Iterable[str]) -> None:
    """`ValueError` for a name that is not an attribute, a class or `identity`; it suggests the nearest one."""
    known = (*ATTRIBUTES, *CLASSES, IDENTITY)
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is no attribute, no class and not {IDENTITY!r}{nearest(name, known)}")
