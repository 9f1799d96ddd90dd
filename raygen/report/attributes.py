"""Section: how often each attribute was asked for, and how often a classifier finds it in the images."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from raygen.core.face_labels import ATTRIBUTES
from raygen.metrics.attributes import Agreement
from raygen.metrics.proportion import wilson
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.store.parquet import Slice, read_slice

__all__ = ["AttributeShare", "attribute_shares", "section"]


class AttributeShare(NamedTuple):
    """One attribute: share of images that were asked to have it, share that has it with its interval, and images."""

    name: str
    asked: float
    made: float
    low: float
    high: float
    n: int

    @property
    def off(self) -> bool:
        """Whether the share that was asked for lies outside the interval."""
        return not self.low <= self.asked <= self.high


def section(run: RunFolder) -> Section | None:
    """A row an attribute, the largest difference first; None where no classifier has judged the images."""
    if run.images is None:
        return None
    stored = [run.stages[name].slices("scores") for name in ("scores/samples", run.images.folder) if name in run.stages]
    network, shares = attribute_shares(next((pieces for pieces in stored if pieces), []))
    variables = {"network": network, "shares": shares, "off": sum(share.off for share in shares)}
    return Section("attributes", "Attributes, asked and made", "attributes.html.j2", variables) if shares else None


def attribute_shares(pieces: Iterable[Slice]) -> tuple[str, Sequence[AttributeShare]]:
    """The classifier and the shares of each attribute in SCORES slices; images where it was not asked for are left out.

    Intervals are Wilson's, 95 %.
    """
    counts, metric = np.zeros((4, len(ATTRIBUTES))), ""
    for piece in pieces:
        table = read_slice(piece, ["metric", "vector"])
        table = table.filter(pc.starts_with(table["metric"], "attributes:"))
        table = table.filter(pc.equal(pc.list_value_length(table["vector"]), len(ATTRIBUTES)))
        metric = metric or (table["metric"][0].as_py() if table.num_rows else "")
        table = table.filter(pc.equal(table["metric"], metric))
        if table.num_rows:
            codes = pc.list_flatten(table["vector"]).to_numpy().astype(np.float32).reshape(-1, len(ATTRIBUTES))
            counts += Agreement.of(codes).counts
    shares = []
    for name, column in zip(ATTRIBUTES, counts.T, strict=True):
        (_, false_positive, false_negative, true_positive), n = column, int(column.sum())
        if n:
            made = true_positive + false_positive
            asked = (true_positive + false_negative) / n
            shares.append(AttributeShare(name, float(asked), float(made / n), *wilson(made, n), n))
    return metric.partition(":")[2], sorted(shares, key=lambda share: (-abs(share.made - share.asked), share.name))
