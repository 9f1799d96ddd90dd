"""Gates over who a picture shows: like the person's other pictures, not a copy of one, like nobody else, nobody real.

Knows embeddings, people and cosines. Does not know how a face is embedded.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from raygen.core.config import Config
from raygen.core.errors import ConfigError
from raygen.evaluation.verification import IDENTITY
from raygen.metrics.verification import BLOCK, unit, verification
from raygen.selection.centroids import IdentityCentroids, chance_limit
from raygen.selection.gates import Gate, RealFaces, ScorePool, Verdicts

__all__ = ["IdentityGate", "LeakGate"]


#: Fields of an identity gate that are rules, in the order in which they judge.
RULES: Final = ("least", "others", "far", "twins")


class IdentityGate(Config):
    """Pictures of a person are alike, not the same picture, and like nobody else. Compared by cosine.

    A person's centre is the mean of the pictures that were accepted and of those that are judged and not refused by a
    rule before. To say whether a picture is like its own person's, it is taken out of it.
    """

    #: Keys that came after runs had been named.
    name: ClassVar[str] = "identity"
    needs: ClassVar[tuple[str, ...]] = (IDENTITY,)
    together: ClassVar[bool] = True

    kind: Literal["identity"] = "identity"
    least: float | None = Field(None, ge=-1, le=1, description="cosine with the person's own centre, at least")
    others: float | None = Field(None, ge=-1, le=1, description="cosine with the centre of anybody else, at most")
    far: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="in place of `others`: the cosine that this share of pictures of real people would be above with "
        "one of as many strangers as there are people here",
    )
    faces: str | None = Field(None, description="of `far`: folder of an ingest run of real people")
    split: str | None = Field(None, description="of `faces`: only those of this split; none: all")
    twins: float | None = Field(None, ge=-1, le=1, description="cosine with another picture of the person, at most")

    @model_validator(mode="after")
    def _says_something(self) -> "IdentityGate":
        if not any(getattr(self, name) is not None for name in RULES):
            raise ValueError("an identity gate needs at least one of `least`, `others`, `far` and `twins`")
        if self.far is not None and self.others is not None:
            raise ValueError("an identity gate has either `others` or `far`")
        if (self.far is None) != (self.faces is None) or (self.split is not None and self.faces is None):
            raise ValueError("`far` is taken from `faces`, and `faces` and `split` are for `far` alone")
        return self

    @property
    def quality(self) -> bool:
        """See `Gate.quality`: a picture of somebody else, or the same one again, is not a matter of how good it is."""
        return self.others is None and self.far is None and self.twins is None

    @property
    def whom(self) -> RealFaces | None:
        """The real people that say how alike strangers are."""
        return None if self.faces is None else (self.faces, self.split)

    def rules(self) -> "Sequence[IdentityGate]":
        """See `Gate.rules`: `least`, `others` or `far`, `twins`; who is refused by one spoils nothing for the next."""
        each = [{name: getattr(self, name)} for name in RULES if getattr(self, name) is not None]
        more = {"faces": self.faces, "split": self.split}
        return [IdentityGate(**one, **(more if "far" in one else {})) for one in each]

    def limits(self, first: ScorePool) -> Mapping[str, float]:
        """Of `far`: how alike real strangers are, for as many people as the first attempt has."""
        if self.far is None or self.whom is None:
            return {}
        vectors, who = _named(first.real[self.whom])
        if len(set(who)) < 2:
            raise ConfigError(
                f"gates: identity.far needs two people in {self.faces} who are told apart; give `others` instead"
            )
        return {"others": chance_limit(vectors, who, self.far, len(set(first.people.values())))}

    def judge(self, fresh: ScorePool, accepted: ScorePool, limits: Mapping[str, float]) -> Verdicts:
        """See `Gate.judge`. Of twins the later row is refused, of two people who are one the one who came later.

        Who has accepted pictures was there before; else the earlier name was.
        """
        found: Verdicts = {}
        for rule in self.rules():
            found |= rule._one(_people(fresh.without(found.keys()), accepted), limits)
        return found

    def _one(self, people: IdentityCentroids, limits: Mapping[str, float]) -> Verdicts:
        """Of a gate with one rule."""
        if self.least is not None:
            own = people.own()
            low = np.flatnonzero(people.fresh & (own < self.least))
            return {
                people.ids[i]: f"identity: {own[i]:.3f} < {self.least:g} to the person's other pictures" for i in low
            }
        if self.twins is not None:
            twins = people.twins(self.twins).items()
            return {one: f"identity: {v:.3f} > {self.twins:g}, the same picture as {near}" for one, (near, v) in twins}
        most = limits["others"] if self.others is None else self.others
        return {one: f"identity: {v:.3f} > {most:g} to {near}" for one, (near, v) in people.strangers(most).items()}

    def values(self, fresh: ScorePool) -> dict[str, float]:
        """The cosine with the person's other pictures of this attempt."""
        people = _people(fresh, ScorePool())
        return {one: float(own) for one, own in zip(people.ids, people.own(), strict=True) if np.isfinite(own)}


class LeakGate(Config):
    """No picture shows a real person: at most so like the nearest of them, or as real people are like each other."""

    name: ClassVar[str] = "leak"
    needs: ClassVar[tuple[str, ...]] = (IDENTITY,)
    together: ClassVar[bool] = False
    quality: ClassVar[bool] = False

    kind: Literal["leak"] = "leak"
    faces: str = Field(..., description="folder of an ingest run: real people that must not be shown")
    split: str | None = Field(None, description="only faces of this split, such as train; none: all")
    most: float | None = Field(None, ge=-1, le=1, description="cosine with a real face, at most")
    far: float | None = Field(
        None, gt=0, lt=1, description="or: the cosine that this share of pairs of different real people reaches"
    )

    @model_validator(mode="after")
    def _one_limit(self) -> "LeakGate":
        if (self.most is None) == (self.far is None):
            raise ValueError("a leak gate has either `most` or `far`")
        return self

    @property
    def whom(self) -> RealFaces:
        """The faces that nobody may look like."""
        return self.faces, self.split

    def rules(self) -> Sequence[Gate]:
        """See `Gate.rules`."""
        return (self,)

    def limits(self, first: ScorePool) -> Mapping[str, float]:
        """`most`, as given or as real people are alike."""
        if self.most is not None:
            return {"most": self.most}
        real = first.real[self.whom]
        who = {name: i for i, name in enumerate(sorted(set(real.people.values())))}
        found = real.of(IDENTITY)
        if found is None or len(who) < 2:
            raise ConfigError(
                f"gates: leak.far needs two people in {self.faces} who are told apart; give `most` instead"
            )
        rows = [i for i, one in enumerate(found.ids) if one in real.people]
        numbers = np.array([who[real.people[found.ids[i]]] for i in rows], np.int64)
        return {"most": verification(found.vectors[rows], numbers, genuine=False).tar(float(self.far or 0))[1]}

    def judge(self, fresh: ScorePool, accepted: ScorePool, limits: Mapping[str, float]) -> Verdicts:
        """See `Gate.judge`."""
        return {
            one: f"leak: {value:.3f} > {limits['most']:.3f} to the real {name}"
            for one, (name, value) in self._nearest(fresh).items()
            if value > limits["most"]
        }

    def values(self, fresh: ScorePool) -> dict[str, float]:
        """How far from the nearest real face: minus the cosine."""
        return {one: -value for one, (_, value) in self._nearest(fresh).items()}

    def _nearest(self, fresh: ScorePool) -> dict[str, tuple[str, float]]:
        made, real = fresh.of(IDENTITY), fresh.real[self.whom].of(IDENTITY)
        if made is None or real is None:
            return {}
        x, y = unit(made.vectors), unit(real.vectors)
        found = {}
        for start in range(0, len(x), BLOCK):
            cosines = x[start : start + BLOCK] @ y.T
            for row, at in enumerate(cosines.argmax(axis=1)):
                found[made.ids[start + row]] = (real.ids[at], float(cosines[row, at]))
        return found


def _named(pool: ScorePool) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Embeddings of rows that say who they show, and whom."""
    found = pool.of(IDENTITY)
    if found is None:
        return np.zeros((0, 1), np.float32), []
    rows = [i for i, one in enumerate(found.ids) if one in pool.people]
    vectors = found.vectors if len(rows) == len(found.ids) else found.vectors[rows]
    return vectors, [pool.people[found.ids[i]] for i in rows]


def _people(fresh: ScorePool, accepted: ScorePool) -> IdentityCentroids:
    """Everybody who is judged together."""
    pools = accepted, fresh
    ids = [[one for one in found.ids if one in pool.people] if (found := pool.of(IDENTITY)) else [] for pool in pools]
    vectors, who = zip(*(_named(pool) for pool in pools), strict=True)
    there = [some for some in vectors if len(some)]
    whole = np.concatenate(there) if len(there) > 1 else (there or vectors)[0]
    return IdentityCentroids(ids[0] + ids[1], whole, who[0] + who[1], len(ids[0]))
