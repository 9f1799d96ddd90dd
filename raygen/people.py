"""Gates over who a picture shows: like the person's other pictures, not a copy of one, like nobody else, nobody real.

Knows embeddings, people and cosines. Does not know how a face is embedded.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from raygen.gates import IDENTITY, Gate, Pool, Verdicts, Whom
from raygen.metrics.identity import BLOCK, unit, verification
from raygen.spec import ConfigError, Spec

__all__ = ["IdentityGate", "LeakGate"]

#: Fields of an identity gate that are rules, in the order in which they judge.
RULES: Final = ("least", "others", "twins")


class IdentityGate(Spec):
    """Pictures of a person are alike, not the same picture, and like nobody else. Compared by cosine.

    A person's centre is the mean of the pictures that were accepted and of those that are judged, without the one that
    is judged itself.
    """

    name: ClassVar[str] = "identity"
    needs: ClassVar[tuple[str, ...]] = (IDENTITY,)
    together: ClassVar[bool] = True

    kind: Literal["identity"] = "identity"
    least: float | None = Field(None, ge=-1, le=1, description="cosine with the person's own centre, at least")
    others: float | None = Field(
        None, ge=-1, le=1, description="cosine with the centre of a person whose name comes earlier, at most"
    )
    twins: float | None = Field(None, ge=-1, le=1, description="cosine with another picture of the person, at most")

    @model_validator(mode="after")
    def _says_something(self) -> "IdentityGate":
        if self.least is None and self.others is None and self.twins is None:
            raise ValueError("an identity gate needs at least one of `least`, `others` and `twins`")
        return self

    @property
    def quality(self) -> bool:
        """See `Gate.quality`: a picture of somebody else, or the same one again, is not a matter of how good it is."""
        return self.others is None and self.twins is None

    def rules(self) -> "Sequence[IdentityGate]":
        """See `Gate.rules`: `least`, `others`, `twins`, who is refused by one spoils nothing for the next."""
        each = [{name: getattr(self, name)} for name in RULES if getattr(self, name) is not None]
        return [IdentityGate(**one) for one in each]

    def limits(self, first: Pool) -> Mapping[str, float]:
        """Nothing depends on the first attempt."""
        return {}

    def judge(self, fresh: Pool, accepted: Pool, limits: Mapping[str, float]) -> Verdicts:
        """See `Gate.judge`. Of twins the later row is refused."""
        found: Verdicts = {}
        for rule in self.rules():
            found |= rule._one(fresh.without(found.keys()), accepted)
        return found

    def _one(self, fresh: Pool, accepted: Pool) -> Verdicts:
        """Of a gate with one rule."""
        group = _Group.of(fresh, accepted)
        found: Verdicts = {}
        for i in group.fresh if group.ids else ():
            one = group.ids[i]
            own = group.own(i)
            if self.least is not None and own is not None and own < self.least:
                found[one] = f"identity: {own:.3f} < {self.least:g} to the person's other pictures"
            elif self.others is not None and (near := group.nearest_earlier(i)) and near[1] > self.others:
                found[one] = f"identity: {near[1]:.3f} > {self.others:g} to {near[0]}"
            elif self.twins is not None and (near := group.twin(i, found)) and near[1] > self.twins:
                found[one] = f"identity: {near[1]:.3f} > {self.twins:g}, the same picture as {near[0]}"
        return found

    def values(self, fresh: Pool) -> dict[str, float]:
        """The cosine with the person's other pictures of this attempt."""
        group = _Group.of(fresh, Pool())
        return {group.ids[i]: own for i in group.fresh if (own := group.own(i)) is not None}


class LeakGate(Spec):
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
    def whom(self) -> Whom:
        """The faces that nobody may look like."""
        return self.faces, self.split

    def rules(self) -> Sequence[Gate]:
        """See `Gate.rules`."""
        return (self,)

    def limits(self, first: Pool) -> Mapping[str, float]:
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

    def judge(self, fresh: Pool, accepted: Pool, limits: Mapping[str, float]) -> Verdicts:
        """See `Gate.judge`."""
        return {
            one: f"leak: {value:.3f} > {limits['most']:.3f} to the real {name}"
            for one, (name, value) in self._nearest(fresh).items() if value > limits["most"]
        }  # fmt: skip

    def values(self, fresh: Pool) -> dict[str, float]:
        """How far from the nearest real face: minus the cosine."""
        return {one: -value for one, (_, value) in self._nearest(fresh).items()}

    def _nearest(self, fresh: Pool) -> dict[str, tuple[str, float]]:
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


class _Group:
    """Embeddings of everybody who is judged together, accepted ones first."""

    def __init__(self, ids: Sequence[str], vectors: npt.NDArray[np.float32], who: Sequence[str], fresh: range) -> None:
        self.ids, self.x, self.fresh = list(ids), unit(vectors), fresh
        self.names = sorted(set(who))
        number = {name: i for i, name in enumerate(self.names)}
        self.who = np.array([number[name] for name in who], np.int64)
        self.sums = np.zeros((len(self.names), self.x.shape[1]), np.float64)
        np.add.at(self.sums, self.who, self.x)
        self.counts = np.bincount(self.who, minlength=len(self.names))
        self.centres = unit(self.sums)
        self.members = [np.flatnonzero(self.who == i) for i in range(len(self.names))]

    @staticmethod
    def of(fresh: Pool, accepted: Pool) -> "_Group":
        """Rows that say who they show."""
        ids: list[str] = []
        vectors = [np.zeros((0, 1), np.float32)]
        first = 0
        for pool in (accepted, fresh):
            first = len(ids)
            found = pool.of(IDENTITY)
            if found is not None:
                rows = [i for i, one in enumerate(found.ids) if one in pool.people]
                ids += [found.ids[i] for i in rows]
                vectors = [*(v for v in vectors if len(v)), found.vectors[rows]]
        whose = {**accepted.people, **fresh.people}
        return _Group(ids, np.concatenate(vectors), [whose[one] for one in ids], range(first, len(ids)))

    def own(self, i: int) -> float | None:
        """Cosine with the mean of the person's other pictures; None where there is no other."""
        who = self.who[i]
        if self.counts[who] < 2:
            return None
        rest = self.sums[who] - self.x[i]
        return float(self.x[i] @ (rest / max(float(np.linalg.norm(rest)), 1e-12)))

    def nearest_earlier(self, i: int) -> tuple[str, float] | None:
        """The person, of those whose name comes earlier, that this picture is most like."""
        who = int(self.who[i])
        if who == 0:
            return None
        cosines = self.centres[:who] @ self.x[i]
        at = int(cosines.argmax())
        return self.names[at], float(cosines[at])

    def twin(self, i: int, refused: Verdicts) -> tuple[str, float] | None:
        """The person's picture before this one, and not refused, that it is most like."""
        before = [j for j in self.members[int(self.who[i])] if j < i and self.ids[j] not in refused]
        if not before:
            return None
        cosines = self.x[before] @ self.x[i]
        at = int(cosines.argmax())
        return self.ids[int(before[at])], float(cosines[at])
