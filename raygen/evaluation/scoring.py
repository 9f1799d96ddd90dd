"""Pictures -> SCORES: features and exact counts of each row, so that any subset of rows can be aggregated later."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from raygen.core.config import Config
from raygen.core.errors import InputError
from raygen.core.face_labels import attribute_list
from raygen.core.landmarks import ARCFACE_TEMPLATE, REASON, from_mask, stored_points
from raygen.core.precision import set_deterministic_precision
from raygen.core.types import UInt8Array
from raygen.evaluation.config import ScoreConfig
from raygen.evaluation.gather import FACE
from raygen.extractors.base import load_classifier, load_features, load_parser
from raygen.extractors.clip import load_clip
from raygen.extractors.config import PackageConfig
from raygen.extractors.face_embedder import load_face_embedder
from raygen.extractors.inception import InceptionFeatures
from raygen.extractors.lpips import load_lpips
from raygen.extractors.package_network import PackageScorer
from raygen.metrics.attributes import codes
from raygen.metrics.image_similarity import psnr, ssim
from raygen.metrics.pair_similarity import Similarity
from raygen.metrics.score_rows import score_table
from raygen.metrics.segmentation import Counts, confusion
from raygen.store.face_crop import crop
from raygen.store.images import decode_image, decode_mask, fit_image
from raygen.store.lookup import RowLookup
from raygen.store.schemas import SCORES

__all__ = ["ScoreWorker", "Scorer"]


#: Ids, names and vectors of measurements.
Scored = list[tuple[str, str, list[float]]]
#: Classes whose bounding box is the face.
FACE_CLASSES: Final = range(1, 13)


class Scorer:
    """Measures uint8 pictures in memory: one row a picture and measurement."""

    def __init__(self, config: ScoreConfig, *, run_id: str, attempt: int = 0, sources: RowLookup | None = None) -> None:
        """`sources`: real faces by id, for the similarity of pictures to their `source`."""
        set_deterministic_precision()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.config = config
        self.run_id, self.attempt, self.sources = run_id, attempt, sources if config.to_source else None
        self.parser = None if config.parser is None else load_parser(config.parser, device)
        self.features = None if config.features is None else load_features(config.features, device)
        self.classifier = None if config.classifier is None else load_classifier(config.classifier, device)
        self.clip = None if config.text is None else load_clip(config.text, device)
        self.identity = None if config.identity is None else load_face_embedder(config.identity, device)
        self.lpips = None if config.lpips is None else Similarity(load_lpips(config.lpips), device)
        self.scorers = [PackageScorer(scorer, device) for scorer in config.scorers]

    def named(self, run_id: str, attempt: int) -> "Scorer":
        """A scorer with the same networks, for the rows of another run."""
        scorer = copy.copy(self)
        scorer.run_id, scorer.attempt = run_id, attempt
        return scorer

    def __call__(self, images: UInt8Array, rows: pa.Table, real: UInt8Array | None = None) -> pa.Table:
        """SCORES of pictures uint8 [n, H, W, 3]; `rows` [n] has their ids and the conditions that were wanted.

        `real`: the originals of reconstructions, uint8 [n, H, W, 3]; without it, pictures are compared with `source`.
        """
        ids = rows[rows.column_names[0]].to_pylist()
        scores: Scored = []
        tensor = torch.from_numpy(np.ascontiguousarray(images))
        masks = rows["mask"].to_pylist() if "mask" in rows.column_names else []
        if self.features is not None and len(ids):
            vectors = self.features.features(tensor)
            scores += _found(_each(ids, f"features:{self.features.name}", vectors), self.config.features)
            if self.config.logits and isinstance(self.features, InceptionFeatures):
                scores += _each(ids, f"logits:{self.features.name}", self.features.logits_of(vectors))
            if self.config.face_features:
                name = f"features:{self.features.name}{FACE}"
                faces = _each_face(ids, name, tensor, masks, self.features.features)
                scores += _found(faces, self.config.features)
        if self.identity is not None and len(ids):
            name = f"identity:{self.identity.name}"
            match self.identity.config.region:
                case "picture":
                    embedded = _each(ids, name, self.identity.embed(tensor))
                case "face":
                    embedded = _each_face(ids, name, tensor, masks, self.identity.embed)
                case "aligned":
                    aligned = aligned_faces(images, rows, self.identity.size)
                    stacked = torch.from_numpy(np.stack(list(aligned.values()))) if aligned else None
                    found = [ids[i] for i in aligned]
                    embedded = [] if stacked is None else _each(found, name, self.identity.embed(stacked))
            scores += _found(embedded, self.identity.config.network)
        for scorer in self.scorers if len(ids) else ():
            scores += _found(_each(ids, f"score:{scorer.name}", scorer.numbers(tensor)), scorer.config)
        if self.parser is not None and "mask" in rows.column_names and len(ids):
            scores += self._segmentation(ids, tensor, masks)
        if self.classifier is not None and "attributes" in rows.column_names and len(ids):
            scores += self._attributes(ids, tensor, rows["attributes"].to_pylist())
        if self.clip is not None and "text" in rows.column_names:
            texts = {i: text for i, text in enumerate(rows["text"].to_pylist()) if text}
            if texts:
                cosines = self.clip.scores(tensor[list(texts)], list(texts.values()))
                scores += _each([ids[i] for i in texts], self.clip.name, cosines[:, None])
        if real is not None and self.config.reconstruction:
            scores += self._pairs(ids, images, real)
        elif self.sources is not None and "source" in rows.column_names:
            scores += self._to_source(ids, images, rows["source"].to_pylist())
        return score_table(scores, self.run_id, self.attempt)

    def _to_source(self, ids: Sequence[str], images: UInt8Array, names: Sequence[str | None]) -> Scored:
        assert self.sources is not None
        named = [(i, name) for i, name in enumerate(names) if name is not None]
        if not named:
            return []
        faces = self.sources([name for _, name in named])
        real = [fit_image(decode_image(faces[name]["image"]["bytes"]), images.shape[1]) for _, name in named]
        return self._pairs([ids[i] for i, _ in named], images[[i for i, _ in named]], np.stack(real))

    def _pairs(self, ids: Sequence[str], generated: UInt8Array, real: UInt8Array) -> Scored:
        """Similarity of each picture to its real one, by the measures of the config."""
        values_of = {"ssim:source": ssim(generated, real)}
        if self.config.reconstruction:
            values_of["psnr:source"] = psnr(generated, real)
        if self.lpips is not None:
            values_of[f"lpips:source:{self.lpips.network}"] = 1 - self.lpips(generated, real)
        return [
            (row_id, name, [float(value)])
            for name, values in values_of.items()
            for row_id, value in zip(ids, values, strict=True)
        ]

    def _segmentation(
        self, ids: Sequence[str], images: torch.Tensor, masks: Sequence[Mapping[str, Any] | None]
    ) -> Scored:
        assert self.parser is not None
        wanted = [i for i, mask in enumerate(masks) if mask is not None and mask["bytes"] is not None]
        if not wanted:
            return []
        labels = self.parser.parse(images[wanted]).numpy()
        result = []
        for i, label in zip(wanted, labels, strict=True):
            mask = decode_mask(masks[i]["bytes"])  # type: ignore[index]
            target = _resized(mask, label.shape)
            result.append((ids[i], f"segmentation:{self.parser.name}", Counts.of(confusion(target, label)).vector()))
            if side := self.config.condition_size:
                small = Counts.of(confusion(_resized(mask, (side, side)), _resized(label, (side, side))))
                result.append((ids[i], f"condition:{self.parser.name}@{side}", small.vector()))
        return result

    def _attributes(
        self, ids: Sequence[str], images: torch.Tensor, wanted: Sequence[Mapping[str, int] | None]
    ) -> Scored:
        assert self.classifier is not None
        asked = [i for i, values in enumerate(wanted) if values is not None]
        if not asked:
            return []
        predicted = self.classifier.attributes(images[asked]).numpy()
        vectors = codes(np.array([attribute_list(wanted[i]) for i in asked], dtype=np.int8), predicted).astype(float)
        name = f"attributes:{self.classifier.name}"
        return [(ids[i], name, vector.tolist()) for i, vector in zip(asked, vectors, strict=True)]

    def protocols(self) -> dict[str, Mapping[str, Any]]:
        """The protocol of each network, by its name."""
        single = (self.parser, self.features, self.classifier, self.clip, self.identity)
        networks = [network for network in (*single, *self.scorers) if network is not None]
        lpips = {} if self.lpips is None else {f"lpips:{self.lpips.network}": self.lpips.protocol()}
        return {network.name: network.protocol() for network in networks} | lpips


def _each(ids: Sequence[str], name: str, vectors: torch.Tensor) -> Scored:
    return [(i, name, vector.tolist()) for i, vector in zip(ids, vectors.cpu().numpy(), strict=True)]


def _found(scored: Scored, network: Config | None) -> Scored:
    """Scores without those of pictures in which a network of a package found no face, for which it gives NaN.

    NaN of any other network is a defect, which is told when the scores are gathered.
    """
    if not isinstance(network, PackageConfig):
        return scored
    return [row for row in scored if np.isfinite(row[2]).all()]


def _each_face(
    ids: Sequence[str],
    name: str,
    images: torch.Tensor,
    masks: Sequence[Mapping[str, Any] | None],
    embed: Callable[[torch.Tensor], torch.Tensor],
) -> Scored:
    """Vectors of the face of each picture by its mask, resized to the picture's size; without a face, no vector."""
    size = tuple(images.shape[1:3])
    faces, face_ids = [], []
    for i, mask in enumerate(masks):
        if mask is None or mask["bytes"] is None:
            continue
        face = np.isin(_resized(decode_mask(mask["bytes"]), size), FACE_CLASSES)
        if not face.any():
            continue
        y, x = (np.flatnonzero(face.any(axis=axis)) for axis in (1, 0))
        part = images[i, y[0] : y[-1] + 1, x[0] : x[-1] + 1].movedim(-1, 0)[None].float()
        resized = torch.nn.functional.interpolate(part, size, mode="bilinear", antialias=True)
        faces.append(resized.round().clamp(0, 255).to(torch.uint8).movedim(1, -1))
        face_ids.append(ids[i])
    return _each(face_ids, name, embed(torch.cat(faces))) if faces else []


def aligned_faces(images: UInt8Array, rows: pa.Table, size: int) -> dict[int, UInt8Array]:
    """Pictures uint8 [n, H, W, 3] cropped to ArcFace's template of `size`, by their place in `rows`.

    The landmarks are those of the column `landmarks`, or else of the mask. Rows whose landmarks cannot be told are left
    out.
    """
    empty = [None] * len(images)
    stored, masks = (rows[name].to_pylist() if name in rows.column_names else empty for name in ("landmarks", "mask"))
    crops = {}
    for i, (image, landmarks, mask) in enumerate(zip(images, stored, masks, strict=True)):
        try:
            if landmarks is not None:
                points = stored_points(landmarks)
            elif mask is not None and mask["bytes"] is not None:
                points = from_mask(decode_mask(mask["bytes"]))
            else:
                continue
        except InputError as error:
            if error.reason != REASON:  # a damaged mask
                raise
            continue
        crops[i] = crop(image, points, ARCFACE_TEMPLATE, size)
    return crops


def _resized(mask: UInt8Array, shape: tuple[int, ...]) -> UInt8Array:
    """A mask at another size by nearest neighbour, so that labels are not mixed."""
    if mask.shape == shape:
        return mask
    y = (np.arange(shape[0]) + 0.5) * mask.shape[0] / shape[0]
    x = (np.arange(shape[1]) + 0.5) * mask.shape[1] / shape[1]
    result: UInt8Array = mask[y.astype(int)[:, None], x.astype(int)[None, :]]
    return result


class ScoreWorker:
    """SAMPLES or FACES rows -> SCORES: a `Scorer` for stored pictures."""

    def __init__(
        self,
        config: ScoreConfig,
        *,
        run_id: str,
        threads: int,
        through: Callable[[UInt8Array], UInt8Array] | None = None,
        sources: RowLookup | None = None,
    ) -> None:
        """`through`: turns pictures uint8 [n, H, W, 3] into those that are measured, such as reconstructions."""
        set_deterministic_precision(threads)
        self.score = Scorer(config, run_id=run_id, sources=sources)
        self.through = through

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Scores the rows now. Rows without a picture are left out.

        `InputError` for a picture that cannot be read: pictures were checked when they were committed, so the file is
        damaged.
        """
        good = rows.filter(rows["image"].is_valid())
        images = [decode_image(value["bytes"]) for value in good["image"].to_pylist()]
        parts = []
        for shape in dict.fromkeys(image.shape for image in images):
            index = [i for i, image in enumerate(images) if image.shape == shape]
            batch = np.stack([images[i] for i in index])
            measured = batch if self.through is None else self.through(batch)
            real = None if self.through is None else batch
            parts.append(self.score(measured, good.take(index), real=real))
        table = pa.concat_tables(parts) if parts else SCORES.empty_table()
        return lambda: {"scores": table}
