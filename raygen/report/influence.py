"""Section: how much each expert of a collaborative model contributes at each step."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup
from PIL import Image

from raygen.core.types import Float64Array
from raygen.report.images import data_url
from raygen.report.plots import DataPoint, Series, line_plot
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.report.vectors import vectors_by_metric
from raygen.store.images import decode_image
from raygen.store.parquet import Slice, read_slice

__all__ = ["InfluenceRow", "section"]


#: Name of the map that is the model's estimate of the image.
X0: Final = "x0"
SAMPLES: Final = 4
#: Side of a tile and distance between tiles, pixels.
SIDE, GAP = 80, 4
#: Dark to bright for 0 to 1: five colours, linear between them.
HEAT: Final = np.array([(14, 16, 48), (84, 32, 112), (176, 58, 98), (240, 136, 62), (252, 240, 190)], dtype=np.float64)


class InfluenceRow(NamedTuple):
    """Tiles in a row, one a step: what they are, and all of them as one data URL."""

    name: str
    image: str


def section(run: RunFolder) -> Section | None:
    """Maps of a few samples over steps, and the mean influence of each expert; None where no maps were kept."""
    samples = list(_samples(run.images.slices("influence"))) if run.images else []
    if run.images is None or not samples:
        return None
    means, n = _mean_influence(run.images.slices("scores"))
    steps = list({row["step"]: row["timestep"] for row in samples[0]}.values())
    series = [
        Series(f"{name} (mean {np.mean(values):.2f})", [DataPoint(i + 1, value) for i, value in enumerate(values)])
        for name, values in means.items()
    ]
    plot = line_plot(
        series,
        name="influence",
        title=f"Mean influence over {n:,} images",
        xlabel="denoising step",
        y_range=(0.0, 1.0),
        markers=False,
    )
    variables = {
        "steps": steps,
        "samples": [(rows[0]["sample_id"], _tile_rows(rows)) for rows in samples],
        "plot": Markup(plot),
    }
    return Section("influence", "Influence of experts", "influence.html.j2", variables)


def _samples(pieces: Sequence[Slice]) -> Iterator[list[dict[str, Any]]]:
    """The rows of the first sample of a few evenly spaced files, a row a map, from noise to image."""
    count = min(SAMPLES, len(pieces))
    for piece in (pieces[int((i + 0.5) * len(pieces) / count)] for i in range(count)):
        ids = read_slice(piece, ["sample_id"])["sample_id"]
        places = pc.indices_nonzero(pc.equal(ids, ids[0])).to_pylist()
        part = piece._replace(start=piece.start + places[0], rows=places[-1] - places[0] + 1)
        rows = [row for row in read_slice(part).to_pylist() if row["sample_id"] == ids[0].as_py()]
        yield sorted(rows, key=lambda row: int(row["step"]))


def _tile_rows(rows: Sequence[Mapping[str, Any]]) -> list[InfluenceRow]:
    """The estimates of the image, then the map of every expert."""
    maps = [{row["name"]: row["map"] for row in own} for _, own in groupby(rows, key=lambda row: row["step"])]
    names = [X0, *sorted(name for name in maps[0] if name != X0)]
    tile_rows = []
    for name in names:
        tiles = [_tile(step_maps[name]["bytes"], heat=name != X0) for step_maps in maps if name in step_maps]
        if tiles:
            canvas = Image.new("RGB", (len(tiles) * (SIDE + GAP) - GAP, SIDE), (128, 128, 128))
            for i, tile in enumerate(tiles):
                canvas.paste(tile, (i * (SIDE + GAP), 0))
            tile_rows.append(InfluenceRow(name, data_url(canvas, quality=88, method=4)))
    return tile_rows


def _tile(data: bytes, *, heat: bool) -> Image.Image:
    """A stored map [h, w] or image as a tile; `heat` colours a map."""
    pixels = decode_image(data)
    if heat:
        places = np.linspace(0, 255, len(HEAT))
        channels = [np.interp(pixels[..., 0], places, HEAT[:, channel]) for channel in range(3)]
        pixels = np.stack(channels, axis=-1).round().astype(np.uint8)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR if heat else Image.Resampling.LANCZOS)


def _mean_influence(scores: Sequence[Slice]) -> tuple[dict[str, list[float]], int]:
    """Mean over samples of the share of each expert at each step, and the number of samples."""
    sums: dict[str, Float64Array] = {}
    counts: dict[str, int] = {}
    for name, vectors in vectors_by_metric(scores, "influence:"):
        shares = vectors[:, : vectors.shape[1] // 2]
        sums[name] = sums.get(name, np.zeros(shares.shape[1])) + shares.sum(axis=0)
        counts[name] = counts.get(name, 0) + len(shares)
    means = {name.partition(":")[2]: (sums[name] / counts[name]).tolist() for name in sorted(sums)}
    return means, max(counts.values(), default=0)
