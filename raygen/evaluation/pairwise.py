"""Scores of pairs of pictures: change against a baseline, and distances within a group."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from raygen.core.errors import InputError
from raygen.core.precision import set_deterministic_precision
from raygen.core.types import UInt8Array
from raygen.evaluation.config import PairwiseConfig
from raygen.extractors.lpips import load_lpips
from raygen.metrics.leakage import change, region
from raygen.metrics.pair_similarity import Similarity
from raygen.metrics.score_rows import score_table
from raygen.store.images import decode_image, decode_mask, fit_mask
from raygen.store.lookup import StoredRows

__all__ = ["CHANGE", "COLUMNS", "DIVERSITY", "PairwiseWorker", "protocols"]


#: Names of the measurements; that of diversity is followed by its distance.
CHANGE: Final = "change"
DIVERSITY: Final = "diversity"
#: Columns of SAMPLES that are read.
COLUMNS: Final = ("sample_id", "image", "mask", "style_parts", "group_id")


def protocols(config: PairwiseConfig) -> dict[str, Mapping[str, Any]]:
    """Protocols by the name of the measurement; that of change and leakage is under `pairwise`."""
    by_name: dict[str, Mapping[str, Any]] = {"pairwise": {"margin": config.margin}}
    if config.diversity:
        similarity = Similarity(load_lpips(config.lpips) if config.lpips else None, torch.device("cpu"))
        by_name[f"{DIVERSITY}:{similarity.name}"] = similarity.protocol()
    return by_name


class PairwiseWorker:
    """SAMPLES rows -> SCORES; the other pictures of a pair are read from their run."""

    def __init__(self, config: PairwiseConfig, samples: str, *, run_id: str, threads: int) -> None:
        """`samples`: folder of the run of the rows, for the other pictures of a group."""
        set_deterministic_precision(threads)
        self.config, self.run_id = config, run_id
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.similarity = (
            Similarity(load_lpips(config.lpips) if config.lpips else None, device) if config.diversity else None
        )
        self.others = StoredRows(samples, ("image",), table="samples")
        self.baseline = None if config.baseline is None else StoredRows(config.baseline, ("image",), table="samples")
        self._groups: dict[str, list[str]] | None = None

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Scores the rows now; pairs in which a picture is missing are left out."""
        good = [row for row in rows.select(COLUMNS).to_pylist() if row["image"] is not None]
        images = {row["sample_id"]: decode_image(row["image"]["bytes"]) for row in good}
        scores = score_table([*self._changes(good, images), *self._diversity(good, images)], self.run_id)
        return lambda: {"scores": scores}

    def _changes(
        self, rows: Sequence[Mapping[str, Any]], images: Mapping[str, UInt8Array]
    ) -> Iterable[tuple[str, str, list[float]]]:
        if self.baseline is None:
            return
        by_id = {row["sample_id"]: row for row in rows}
        for name, before in _pictures(self.baseline, images).items():
            row, image = by_id[name], images[name]
            if image.shape != before.shape:
                raise InputError(f"{name}: {image.shape[1]} px, in the baseline {before.shape[1]} px", reason="size")
            everywhere = np.ones(image.shape[:2], dtype=bool)
            inside, outside = everywhere, ~everywhere
            if row["style_parts"]:
                if row["mask"] is None:
                    continue  # the parts are known by the mask alone
                mask = fit_mask(decode_mask(row["mask"]["bytes"]), image.shape[0])
                inside, outside = region(mask, tuple(row["style_parts"]), self.config.margin)
            yield name, CHANGE, change(image, before, inside, outside)

    def _diversity(
        self, rows: Sequence[Mapping[str, Any]], images: Mapping[str, UInt8Array]
    ) -> Iterable[tuple[str, str, list[float]]]:
        """Each row with the earlier rows of its group, so that every pair is measured once."""
        if self.similarity is None:
            return
        if self._groups is None:
            self._groups = {}
            table = self.others.all(["group_id", "sample_id"])
            for group_id, row_id in zip(table["group_id"].to_pylist(), table["sample_id"].to_pylist(), strict=True):
                self._groups.setdefault(group_id, []).append(row_id)
        earlier: dict[str, list[str]] = {}
        for row in rows:
            names = [] if row["group_id"] is None else self._groups.get(row["group_id"], [])
            earlier[row["sample_id"]] = names[: names.index(row["sample_id"])] if row["sample_id"] in names else []
        missing = {name for names in earlier.values() for name in names} - set(images)
        known = {**images, **_pictures(self.others, missing)}
        groups: dict[str, dict[str, list[str]]] = {}
        for row in rows:
            others = [other for other in earlier[row["sample_id"]] if other in known]
            if others:
                groups.setdefault(row["group_id"], {})[row["sample_id"]] = others
        sums = {name: vector for group in groups.values() for name, vector in _sums(self.similarity, group, known)}
        for name in earlier:
            if name in sums:
                yield name, f"{DIVERSITY}:{self.similarity.name}", sums[name]


def _sums(
    similarity: Similarity, partners: Mapping[str, Sequence[str]], known: Mapping[str, UInt8Array]
) -> Iterable[tuple[str, list[float]]]:
    """Rows of one group, each with its partners -> the sum of their distances and their number."""
    names = list(dict.fromkeys([*partners, *(other for others in partners.values() for other in others)]))
    place = {name: i for i, name in enumerate(names)}
    wanted = [(place[name], place[other]) for name, others in partners.items() for other in others]
    distances = 1 - similarity.pairs(np.stack([known[name] for name in names]), wanted)
    start = 0
    for name, others in partners.items():
        yield name, [float(distances[start : start + len(others)].sum()), float(len(others))]
        start += len(others)


def _pictures(rows: StoredRows, names: Iterable[str]) -> dict[str, UInt8Array]:
    """Pictures by id; failed rows are left out."""
    return {name: decode_image(row["image"]["bytes"]) for name, row in rows(names).items() if row["image"] is not None}
