"""Which pictures are good enough: gates over the measurements of a picture, and over pictures beside each other.

Knows measurements by name and the rules about them. Does not know who made the pictures, how often one is tried, nor
what becomes of those that are refused.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from raygen.core.config import Config, nearest
from raygen.core.errors import ConfigError
from raygen.core.face_labels import ATTRIBUTE_INDEX, ATTRIBUTES, CLASS_INDEX, CLASSES
from raygen.evaluation.aggregate import ScoreMatrix
from raygen.metrics.attributes import RIGHT, UNKNOWN
from raygen.metrics.segmentation import Counts, per_picture_miou

__all__ = ["Gate", "RealFaces", "ScoreGate", "ScorePool", "Verdicts", "per_sample_values"]


Array = npt.NDArray[np.float64]
#: Reasons by id; whoever is not in it passed.
Verdicts = dict[str, str]
#: Real faces: their folder, and the split that counts (none: all).
RealFaces = tuple[str, str | None]
#: What each score is made of: begin of the measurement's name.
MADE_OF: Final[Mapping[str, str]] = {
    "miou": "segmentation:",
    "pixel_accuracy": "segmentation:",
    "attributes": "attributes:",
    "ssim": "ssim:",
    "clip": "clip:",
}


@dataclass
class ScorePool:
    """Pictures that are judged together: their measurements, and whom they show where rows say so."""

    scores: dict[str, ScoreMatrix] = field(default_factory=dict)
    people: dict[str, str] = field(default_factory=dict)
    #: Real faces that gates name.
    real: Mapping[RealFaces, "ScorePool"] = field(default_factory=dict)

    def of(self, kind: str) -> ScoreMatrix | None:
        """The measurement whose name begins so."""
        return next((found for name, found in self.scores.items() if name.startswith(kind)), None)

    def with_more(self, other: "ScorePool", ids: Set[str]) -> "ScorePool":
        """This and the rows `ids` of another."""
        scores = dict(self.scores)
        new = other.only(ids)
        for name, found in new.scores.items():
            old = scores.get(name)
            more = (
                None if old is None else ScoreMatrix(old.ids + found.ids, np.concatenate([old.vectors, found.vectors]))
            )
            scores[name] = found if more is None else more
        return ScorePool(scores, {**self.people, **new.people}, other.real)

    def only(self, ids: Set[str]) -> "ScorePool":
        """Of the rows `ids`."""
        people = {one: who for one, who in self.people.items() if one in ids}
        return ScorePool({name: _some(found, ids) for name, found in self.scores.items()}, people, self.real)

    def without(self, ids: Set[str]) -> "ScorePool":
        """Of all rows but `ids`: this pool itself where that is nobody."""
        return self.only({one for found in self.scores.values() for one in found.ids} - ids) if ids else self

    def unmeasured(self, needs: Sequence[str], ids: Sequence[str]) -> list[str]:
        """Those of `ids` that lack one of these measurements."""
        there = [set(found.ids) if (found := self.of(kind)) is not None else set() for kind in needs]
        return [one for one in ids if any(one not in some for some in there)]


def _some(found: ScoreMatrix, ids: Set[str]) -> ScoreMatrix:
    keep = [i for i, one in enumerate(found.ids) if one in ids]
    return found if len(keep) == len(found.ids) else ScoreMatrix(tuple(found.ids[i] for i in keep), found.vectors[keep])


class Gate(Protocol):
    """One rule."""

    @property
    def name(self) -> str:
        """The rule in words."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Begins of the names of the measurements that it reads."""
        ...

    @property
    def together(self) -> bool:
        """Whether it compares pictures with each other, and so should see those alone that passed everything else."""
        ...

    @property
    def quality(self) -> bool:
        """Whether it says how good a picture is and no more, so that the best of several may count all the same."""
        ...

    def rules(self) -> "Sequence[Gate]":
        """Its rules one by one, in the order in which they judge."""
        ...

    def limits(self, first: ScorePool) -> Mapping[str, float]:
        """What the first attempt fixes for all later ones."""
        ...

    def judge(self, fresh: ScorePool, accepted: ScorePool, limits: Mapping[str, float]) -> Verdicts:
        """Who of `fresh` is refused, and why; who was accepted earlier stays."""
        ...

    def values(self, fresh: ScorePool) -> dict[str, float]:
        """How good each picture is by this rule, higher is better; without those that it cannot say."""
        ...


class ScoreGate(Config):
    """A picture's own number: at least so much, or not among the worst of the first attempt."""

    together: ClassVar[bool] = False
    quality: ClassVar[bool] = True

    kind: Literal["score"] = "score"
    metric: Literal["miou", "pixel_accuracy", "attributes", "ssim", "clip"] = Field(
        "miou", description="of one picture; attributes: share of what was asked for that is there"
    )
    of: tuple[str, ...] = Field((), description="only these classes (miou) or attributes; empty: all")
    least: float | None = Field(None, description="lower values are refused")
    worst: float | None = Field(None, gt=0, lt=1, description="or this share of the first attempt, and what is as bad")

    @model_validator(mode="after")
    def _one_limit(self) -> "ScoreGate":
        if (self.least is None) == (self.worst is None):
            raise ValueError("a gate has either `least` or `worst`")
        known = {"miou": CLASSES, "attributes": ATTRIBUTES}.get(self.metric, ())
        for name in self.of:
            if name not in known:
                raise ValueError(f"of: {name!r} is not one that {self.metric} has{nearest(name, known)}")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Gate.needs`."""
        return (MADE_OF[self.metric],)

    def rules(self) -> Sequence[Gate]:
        """See `Gate.rules`."""
        return (self,)

    def limits(self, first: ScorePool) -> Mapping[str, float]:
        """`least`: as given, or the quantile of the first attempt."""
        if self.least is not None:
            return {"least": self.least}
        found = np.array(sorted(self.values(first).values()))
        # The value that so many are below: everything under it is refused, so a share that rounds to none refuses none.
        return {"least": float(found[int(len(found) * (self.worst or 0))]) if len(found) else 0.0}

    def judge(self, fresh: ScorePool, accepted: ScorePool, limits: Mapping[str, float]) -> Verdicts:
        """See `Gate.judge`."""
        least = limits["least"]
        return {one: f"{self.name} {v:.3f} < {least:.3f}" for one, v in self.values(fresh).items() if v < least}

    @property
    def name(self) -> str:
        """In words: the metric and what it is taken over."""
        return f"{self.metric} of {', '.join(self.of)}" if self.of else self.metric

    def values(self, fresh: ScorePool) -> dict[str, float]:
        """See `Gate.values`. A mask without the class has no mIoU of it, rows that ask for no attribute no share."""
        found = fresh.of(MADE_OF[self.metric])
        if found is None:
            return {}
        values = per_sample_values(self.metric, self.of, found.vectors)
        return {one: float(value) for one, value in zip(found.ids, values, strict=True) if np.isfinite(value)}


def per_sample_values(metric: str, of: Sequence[str], vectors: npt.NDArray[Any]) -> Array:
    """A picture's own number from its measurement [n, D]: float64 [n], NaN where there is none."""
    match metric:
        case "miou":
            counts = Counts.from_vectors(vectors)
            if not of:
                return per_picture_miou(counts)
            part = counts.iou()[:, [CLASS_INDEX[name] for name in of]]
            there = np.isfinite(part).sum(axis=1)
            return _shares(np.nansum(part, axis=1), there)
        case "pixel_accuracy":
            counts = Counts.from_vectors(vectors)
            return np.asarray(counts.both.sum(axis=1) / np.maximum(counts.wanted.sum(axis=1), 1))
        case "attributes":
            codes = np.rint(vectors[:, [ATTRIBUTE_INDEX[name] for name in of or ATTRIBUTES]])
            asked = (codes != UNKNOWN).sum(axis=1)
            return _shares(np.isin(codes, RIGHT).sum(axis=1), asked)
        case "ssim" | "clip":
            return np.asarray(vectors[:, 0], np.float64)
    raise ConfigError(f"gates: {metric} is no number of a single picture")


def _shares(some: npt.NDArray[Any], of: npt.NDArray[Any]) -> Array:
    """`some` / `of`, NaN where that is of nothing."""
    found: Array = np.divide(some, of, out=np.full(len(of), np.nan), where=of > 0)
    return found
