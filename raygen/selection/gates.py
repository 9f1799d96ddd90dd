"""Gates: rules that accept or refuse images by their scores.

`Gate` is what every gate has; `raygen.selection.GATES` names all of them.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import Field, model_validator

from raygen.core.config import Config, nearest
from raygen.core.errors import ConfigError
from raygen.core.face_labels import ATTRIBUTE_INDEX, ATTRIBUTES, CLASS_INDEX, CLASSES
from raygen.core.types import AnyArray, Float64Array
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.metrics.attributes import RIGHT, UNKNOWN
from raygen.metrics.segmentation import Counts, per_picture_miou

__all__ = ["Gate", "RealFaces", "ScoreGate", "ScorePool", "Verdicts", "per_sample_values"]


#: Reasons by id of refused images; an id that is not in it passed.
Verdicts = dict[str, str]
#: Real faces: their folder, and the split that is used (None: all).
RealFaces = tuple[str, str | None]
#: Prefix of the measurement that each score is computed from.
MEASUREMENTS: Final[Mapping[str, str]] = {
    "miou": "segmentation:",
    "pixel_accuracy": "segmentation:",
    "attributes": "attributes:",
    "ssim": "ssim:",
    "clip": "clip:",
    "scorer": "score:",
}
#: Scores as a data card calls them.
TITLES: Final[Mapping[str, str]] = {
    "miou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "attributes": "share of correct attributes",
    "ssim": "SSIM",
    "clip": "CLIP score",
    "scorer": "score",
}


@dataclass
class ScorePool:
    """Images that are judged together: scores by measurement, and the identity of each image that has one."""

    scores: dict[str, ScoreMatrix] = field(default_factory=dict)
    people: dict[str, str] = field(default_factory=dict)
    #: The real faces that gates compare with.
    real: Mapping[RealFaces, "ScorePool"] = field(default_factory=dict)

    def of(self, prefix: str) -> ScoreMatrix | None:
        """The measurement of this name, or one whose name starts with `prefix`, which ends with a colon then."""
        if prefix in self.scores or not prefix.endswith(":"):
            return self.scores.get(prefix)
        return next((scores for name, scores in self.scores.items() if name.startswith(prefix)), None)

    def with_more(self, other: "ScorePool", ids: Set[str]) -> "ScorePool":
        """This pool and the rows `ids` of another one."""
        scores = dict(self.scores)
        new = other.only(ids)
        for name, added in new.scores.items():
            own = scores.get(name)
            if own is not None:
                added = ScoreMatrix(own.ids + added.ids, np.concatenate([own.vectors, added.vectors]))
            scores[name] = added
        return ScorePool(scores, {**self.people, **new.people}, other.real)

    def only(self, ids: Set[str]) -> "ScorePool":
        """The rows `ids`."""
        people = {name: identity for name, identity in self.people.items() if name in ids}
        return ScorePool({name: _rows(scores, ids) for name, scores in self.scores.items()}, people, self.real)

    def without(self, ids: Set[str]) -> "ScorePool":
        """All rows but `ids`; this pool itself where `ids` is empty."""
        return self.only({name for scores in self.scores.values() for name in scores.ids} - ids) if ids else self

    def unmeasured(self, needs: Sequence[str], ids: Sequence[str]) -> list[str]:
        """Those of `ids` that lack one of the measurements whose prefixes are `needs`."""
        measured = [set(scores.ids) if (scores := self.of(prefix)) is not None else set() for prefix in needs]
        return [name for name in ids if any(name not in names for names in measured)]


def _rows(scores: ScoreMatrix, ids: Set[str]) -> ScoreMatrix:
    keep = [i for i, name in enumerate(scores.ids) if name in ids]
    if len(keep) == len(scores.ids):
        return scores
    return ScoreMatrix(tuple(scores.ids[i] for i in keep), scores.vectors[keep])


class Gate(Config):
    """A rule that refuses images, as part of a job.

    A gate has its own `kind`, `needs`, `judge` and `describe`; the rest has defaults for a rule about one image at a
    time.
    """

    #: Whether it compares images with each other; it then judges only those that passed every other rule.
    together: ClassVar[bool] = False
    #: Whether it refuses images that resemble real people. Its description then goes into the limits of a data card.
    refuses_real_people: ClassVar[bool] = False

    kind: str

    @property
    def name(self) -> str:
        """The rule in reasons and messages."""
        return self.kind

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Prefixes of the measurements that it reads."""

    @property
    def quality(self) -> bool:
        """Whether it only judges how good an image is, so that the best of several refused ones may be accepted."""
        return True

    @property
    def real_faces(self) -> RealFaces | None:
        """Real faces that it compares with; their embeddings are in `ScorePool.real`."""
        return None

    def rules(self) -> "Sequence[Gate]":
        """Its rules one by one, in the order in which they judge."""
        return (self,)

    def limits(self, first: ScorePool) -> Mapping[str, float]:
        """Limits that the first attempt fixes for all later ones, by name."""
        return {}

    @abstractmethod
    def judge(self, fresh: ScorePool, accepted: ScorePool, limits: Mapping[str, float]) -> Verdicts:
        """Which images of `fresh` are refused, and why. `accepted` has the images of earlier attempts; they stay."""

    def values(self, fresh: ScorePool) -> dict[str, float]:
        """How good each image is by this rule, higher is better; without those that cannot be judged."""
        return {}

    @abstractmethod
    def describe(self, limits: Mapping[str, float]) -> str:
        """One or two sentences for a data card, with the limits of a finished selection and without any path."""


class ScoreGate(Gate):
    """A score of each image: at least `min`, or not among the share `reject_fraction` of the first attempt."""

    kind: Literal["score"] = "score"
    metric: Literal["miou", "pixel_accuracy", "attributes", "ssim", "clip", "scorer"] = Field(
        "miou",
        description="measurement of one picture; attributes is the fraction of the wanted "
        "attributes that the picture has, scorer the number of a network in `score.scorers`",
    )
    scorer: str | None = Field(None, description="with metric scorer: the name of the network")
    classes: tuple[str, ...] = Field((), description="only these classes (miou) or attributes; empty uses all")
    min: float | None = Field(None, description="smallest value that passes")
    reject_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="in place of `min`: the fraction of the first attempt that is rejected, which sets the limit",
    )

    @model_validator(mode="after")
    def _one_limit(self) -> "ScoreGate":
        if (self.min is None) == (self.reject_fraction is None):
            raise ValueError("a gate has either `min` or `reject_fraction`")
        if (self.metric == "scorer") != (self.scorer is not None):
            raise ValueError("`scorer` names the network of the metric scorer, and of no other")
        known = {"miou": CLASSES, "attributes": ATTRIBUTES}.get(self.metric, ())
        for name in self.classes:
            if name not in known:
                raise ValueError(f"classes: {name!r} is not one that {self.metric} has{nearest(name, known)}")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Gate.needs`."""
        return (f"{MEASUREMENTS[self.metric]}{self.scorer or ''}",)

    def limits(self, first: ScorePool) -> Mapping[str, float]:
        """`min`: as given, or the quantile of the first attempt."""
        if self.min is not None:
            return {"min": self.min}
        values = np.array(sorted(self.values(first).values()))
        # Only values below the limit are refused, so a share that rounds to no image refuses none.
        return {"min": float(values[int(len(values) * (self.reject_fraction or 0))]) if len(values) else 0.0}

    def judge(self, fresh: ScorePool, accepted: ScorePool, limits: Mapping[str, float]) -> Verdicts:
        """See `Gate.judge`."""
        return {
            one: f"{self.name} {v:.3f} < {limits['min']:.3f}"
            for one, v in self.values(fresh).items()
            if v < limits["min"]
        }

    @property
    def name(self) -> str:
        """The metric or the scorer, and the classes or attributes that it is restricted to."""
        if self.scorer is not None:
            return self.scorer
        return f"{self.metric} of {', '.join(self.classes)}" if self.classes else self.metric

    def values(self, fresh: ScorePool) -> dict[str, float]:
        """See `Gate.values`. A row has no value where its mask lacks the class or it asks for no attribute."""
        scores = fresh.of(self.needs[0])
        if scores is None:
            return {}
        values = per_sample_values(self.metric, self.classes, scores.vectors)
        return {name: float(value) for name, value in zip(scores.ids, values, strict=True) if np.isfinite(value)}

    def describe(self, limits: Mapping[str, float]) -> str:
        """See `Gate.describe`."""
        parts = self.classes or ((self.scorer,) if self.scorer else ())
        title = TITLES[self.metric] + (f" of {', '.join(parts)}" if parts else "")
        chosen = (
            "" if self.reject_fraction is None else f", the {self.reject_fraction:g} quantile of the first attempt,"
        )
        return f"Images with a {title} below {limits['min']:.4g}{chosen} were refused."


def per_sample_values(metric: str, of: Sequence[str], vectors: AnyArray) -> Float64Array:
    """The score of each image from its measurement [n, D]: float64 [n], NaN where it has none."""
    match metric:
        case "miou":
            counts = Counts.from_vectors(vectors)
            if not of:
                return per_picture_miou(counts)
            part = counts.iou()[:, [CLASS_INDEX[name] for name in of]]
            return _shares(np.nansum(part, axis=1), np.isfinite(part).sum(axis=1))
        case "pixel_accuracy":
            counts = Counts.from_vectors(vectors)
            return np.asarray(counts.both.sum(axis=1) / np.maximum(counts.wanted.sum(axis=1), 1))
        case "attributes":
            codes = np.rint(vectors[:, [ATTRIBUTE_INDEX[name] for name in of or ATTRIBUTES]])
            return _shares(np.isin(codes, RIGHT).sum(axis=1), (codes != UNKNOWN).sum(axis=1))
        case "ssim" | "clip" | "scorer":
            return np.asarray(vectors[:, 0], np.float64)
    raise ConfigError(f"gates: {metric} is not a score of a single image")


def _shares(part: AnyArray, whole: AnyArray) -> Float64Array:
    """`part` / `whole` [n], NaN where `whole` is 0."""
    shares: Float64Array = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return shares
