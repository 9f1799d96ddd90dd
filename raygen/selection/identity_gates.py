"""Gates over face identity: similarity within an identity, duplicates, and similarity to other and to real people."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import Field, model_validator

from raygen.core.errors import ConfigError
from raygen.core.location import Location
from raygen.core.types import Float32Array
from raygen.evaluation.score_matrix import IDENTITY
from raygen.metrics.verification import BLOCK, unit, verification
from raygen.selection.centroids import IdentityCentroids, chance_limit
from raygen.selection.gates import Gate, RealFaces, ScorePool, Verdicts

__all__ = ["IdentityGate", "LeakGate"]


#: Fields of an identity gate that are rules, in the order in which they judge.
RULES: Final = ("min", "max_other_similarity", "max_false_rate", "max_duplicate_similarity")


class IdentityGate(Gate):
    """Images of an identity are similar, not the same image, and not similar to another identity. Compared by cosine.

    An identity's centroid is the mean of the images that were accepted and of those that are judged and not refused by
    an earlier rule. An image is compared with its own identity's centroid without the image itself.
    """

    #: Keys that came after runs had been named.
    together: ClassVar[bool] = True

    kind: Literal["identity"] = "identity"
    min: float | None = Field(None, ge=-1, le=1, description="smallest cosine with the centre of the identity")
    max_other_similarity: float | None = Field(
        None, ge=-1, le=1, description="largest cosine with the centre of another identity"
    )
    max_false_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="in place of `max_other_similarity`: the rate at which pictures of real people would "
        "be rejected, among as many other people as there are identities; needs `faces`",
    )
    faces: Location | None = Field(
        None, description="folder of the ingest run of real people that `max_false_rate` is measured on"
    )
    split: str | None = Field(None, description="split of `faces` to use; default: all")
    max_duplicate_similarity: float | None = Field(
        None, ge=-1, le=1, description="largest cosine with another picture of the identity"
    )

    @model_validator(mode="after")
    def _says_something(self) -> "IdentityGate":
        if not any(getattr(self, name) is not None for name in RULES):
            raise ValueError(f"an identity gate needs at least one of {', '.join(RULES)}")
        if self.max_false_rate is not None and self.max_other_similarity is not None:
            raise ValueError("an identity gate has either `max_other_similarity` or `max_false_rate`")
        if (self.max_false_rate is None) != (self.faces is None) or (self.split is not None and self.faces is None):
            raise ValueError(
                "`max_false_rate` is taken from `faces`, and `faces` and `split` are for `max_false_rate` alone"
            )
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Gate.needs`."""
        return (IDENTITY,)

    @property
    def quality(self) -> bool:
        """See `Gate.quality`: an image of another identity, or a duplicate, is not a matter of quality."""
        return (
            self.max_other_similarity is None and self.max_false_rate is None and self.max_duplicate_similarity is None
        )

    @property
    def real_faces(self) -> RealFaces | None:
        """The real people whose similarity sets the limit of `max_false_rate`."""
        return None if self.faces is None else (self.faces, self.split)

    def rules(self) -> "Sequence[IdentityGate]":
        """See `Gate.rules`: one rule a limit. An image that one refuses is not compared with by the next."""
        rules = [{name: getattr(self, name)} for name in RULES if getattr(self, name) is not None]
        faces = {"faces": self.faces, "split": self.split}
        return [IdentityGate(**rule, **(faces if "max_false_rate" in rule else {})) for rule in rules]

    def limits(self, first: ScorePool) -> Mapping[str, float]:
        """The limit of `max_false_rate`: from different real people, for as many identities as there are."""
        if self.max_false_rate is None or self.real_faces is None:
            return {}
        vectors, identities = _labelled(first.real[self.real_faces])
        if len(set(identities)) < 2:
            raise ConfigError(
                f"gates: identity.max_false_rate needs at least two labelled identities in {self.faces}; "
                "give `max_other_similarity` instead"
            )
        return {
            "max_other_similarity": chance_limit(
                vectors, identities, self.max_false_rate, len(set(first.people.values()))
            )
        }

    def judge(self, fresh: ScorePool, accepted: ScorePool, limits: Mapping[str, float]) -> Verdicts:
        """See `Gate.judge`. Of duplicates the later row is refused, of two identities that are one the later identity.

        An identity with accepted images counts as earlier; otherwise the order is that of the names.
        """
        refused: Verdicts = {}
        for rule in self.rules():
            refused |= rule._judge_one(_centroids(fresh.without(refused.keys()), accepted), limits)
        return refused

    def _judge_one(self, people: IdentityCentroids, limits: Mapping[str, float]) -> Verdicts:
        """The refused images of a gate with a single rule."""
        if self.min is not None:
            own = people.own()
            low = np.flatnonzero(people.fresh & (own < self.min))
            return {people.ids[i]: f"identity: {own[i]:.3f} < {self.min:g} to the person's other pictures" for i in low}
        if self.max_duplicate_similarity is not None:
            twins = people.twins(self.max_duplicate_similarity).items()
            return {
                name: f"identity: {v:.3f} > {self.max_duplicate_similarity:g}, the same picture as {near}"
                for name, (near, v) in twins
            }
        most = limits["max_other_similarity"] if self.max_other_similarity is None else self.max_other_similarity
        return {name: f"identity: {v:.3f} > {most:g} to {near}" for name, (near, v) in people.strangers(most).items()}

    def values(self, fresh: ScorePool) -> dict[str, float]:
        """The cosine with the identity's other images of this attempt."""
        people = _centroids(fresh, ScorePool())
        return {name: float(own) for name, own in zip(people.ids, people.own(), strict=True) if np.isfinite(own)}

    def describe(self, limits: Mapping[str, float]) -> str:
        """See `Gate.describe`."""
        rules = []
        if self.min is not None:
            rules.append(f"below {self.min:g} to the other images of their identity")
        most = limits.get("max_other_similarity", self.max_other_similarity)
        if most is not None:
            split = f" of split `{self.split}`" if self.split else ""
            chosen = (
                f" (a share of {self.max_false_rate:g} of images of real people{split} is above it)"
                if self.max_false_rate
                else ""
            )
            rules.append(f"above {most:.4g} to another identity{chosen}")
        if self.max_duplicate_similarity is not None:
            rules.append(f"above {self.max_duplicate_similarity:g} to another image of their identity")
        return f"Images with a face similarity (cosine) {', or '.join(rules)} were refused."


class LeakGate(Gate):
    """No image resembles a real person: its cosine with the nearest real face has a limit.

    The limit is given, or it is the cosine that a share of pairs of different real people reaches.
    """

    refuses_real_people: ClassVar[bool] = True

    kind: Literal["leak"] = "leak"
    faces: Location = Field(..., description="folder of the ingest run of real people that no picture may resemble")
    split: str | None = Field(None, description="split of `faces` to use, such as train; default: all")
    max: float | None = Field(None, ge=-1, le=1, description="largest cosine with a real face")
    max_false_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="in place of `max`: the rate at which pairs of different real "
        "people would be called the same, which sets the limit",
    )

    @model_validator(mode="after")
    def _one_limit(self) -> "LeakGate":
        if (self.max is None) == (self.max_false_rate is None):
            raise ValueError("a leak gate has either `max` or `max_false_rate`")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Gate.needs`."""
        return (IDENTITY,)

    @property
    def quality(self) -> bool:
        """See `Gate.quality`: an image of a real person is never accepted as the best of several."""
        return False

    @property
    def real_faces(self) -> RealFaces:
        """The faces that no image may resemble."""
        return self.faces, self.split

    def limits(self, first: ScorePool) -> Mapping[str, float]:
        """`max`, as given or by `max_false_rate` from pairs of different real people."""
        if self.max is not None:
            return {"max": self.max}
        vectors, identities = _labelled(first.real[self.real_faces])
        numbers = {name: i for i, name in enumerate(sorted(set(identities)))}
        if len(numbers) < 2:
            raise ConfigError(
                f"gates: leak.max_false_rate needs at least two labelled identities in {self.faces}; give `max` instead"
            )
        labels = np.array([numbers[name] for name in identities], np.int64)
        return {"max": verification(vectors, labels, genuine=False).tar(float(self.max_false_rate or 0))[1]}

    def judge(self, fresh: ScorePool, accepted: ScorePool, limits: Mapping[str, float]) -> Verdicts:
        """See `Gate.judge`."""
        return {
            name: f"leak: {value:.3f} > {limits['max']:.3f} to the real {face}"
            for name, (face, value) in self._nearest(fresh).items()
            if value > limits["max"]
        }

    def values(self, fresh: ScorePool) -> dict[str, float]:
        """Minus the cosine with the nearest real face."""
        return {name: -value for name, (_, value) in self._nearest(fresh).items()}

    def describe(self, limits: Mapping[str, float]) -> str:
        """See `Gate.describe`."""
        split = f" of split `{self.split}`" if self.split else ""
        chosen = (
            f", which a share of {self.max_false_rate:g} of pairs of different people reach"
            if self.max_false_rate
            else ""
        )
        return (
            f"A leak gate compared every image with real faces{split} and refused those with a cosine above "
            f"{limits['max']:.3f}{chosen}."
        )

    def _nearest(self, fresh: ScorePool) -> dict[str, tuple[str, float]]:
        """The nearest real face of each image, and the cosine with it."""
        images, real = fresh.of(IDENTITY), fresh.real[self.real_faces].of(IDENTITY)
        if images is None or real is None:
            return {}
        x, y = unit(images.vectors), unit(real.vectors)
        nearest = {}
        for start in range(0, len(x), BLOCK):
            cosines = x[start : start + BLOCK] @ y.T
            for row, at in enumerate(cosines.argmax(axis=1)):
                nearest[images.ids[start + row]] = (real.ids[at], float(cosines[row, at]))
        return nearest


def _labelled(pool: ScorePool) -> tuple[Float32Array, list[str]]:
    """Embeddings [n, D] of rows that have an identity, and their identities."""
    scores = pool.of(IDENTITY)
    if scores is None:
        return np.zeros((0, 1), np.float32), []
    rows = [i for i, name in enumerate(scores.ids) if name in pool.people]
    vectors = scores.vectors if len(rows) == len(scores.ids) else scores.vectors[rows]
    return vectors, [pool.people[scores.ids[i]] for i in rows]


def _centroids(fresh: ScorePool, accepted: ScorePool) -> IdentityCentroids:
    """All identities that are judged together, accepted images first."""
    ids: list[list[str]] = []
    for pool in (accepted, fresh):
        scores = pool.of(IDENTITY)
        ids.append([name for name in scores.ids if name in pool.people] if scores else [])
    vectors, identities = zip(*(_labelled(pool) for pool in (accepted, fresh)), strict=True)
    filled = [part for part in vectors if len(part)]
    joined = np.concatenate(filled) if len(filled) > 1 else (filled or vectors)[0]
    return IdentityCentroids(ids[0] + ids[1], joined, identities[0] + identities[1], len(ids[0]))
