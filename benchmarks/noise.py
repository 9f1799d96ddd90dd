"""How far noise and pictures lie apart: kurtosis of edges, and two measures that tell them apart less well.

    python benchmarks/noise.py FOLDER ...

A folder is a run with SAMPLES or FACES, or has picture files. One line a folder: smallest, median and largest value of
each measure over at most 300 pictures.
"""

import sys
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from raygen.core.errors import RaygenError
from raygen.core.types import UInt8Array
from raygen.metrics.noise import LUMA, check_noise, edge_kurtosis
from raygen.store.images import decode_image
from raygen.store.run_store import open_input

MOST = 300
SUFFIXES = {".jpg", ".png", ".webp", ".pgm"}


def pictures(folder: str) -> Iterator[UInt8Array]:
    """uint8 [H, W, 3] of a run or of a folder of files."""
    try:
        store, _ = open_input(folder)
        names = ("samples", "faces")
        for table in store.tables(next(name for name in names if store.has(name)), ["image"]):
            yield from (decode_image(value["bytes"]) for value in table["image"].to_pylist() if value)
    except RaygenError:
        for path in sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES):
            if "mask" not in path.name:
                yield np.asarray(Image.open(path).convert("RGB"))


def neighbours(image: UInt8Array) -> float:
    """Correlation of pixels with those beside and below."""
    grey = image @ np.array(LUMA)
    pairs = ((grey[:, :-1], grey[:, 1:]), (grey[:-1], grey[1:]))
    return float(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]))


def slope(image: UInt8Array) -> float:
    """Slope of the power spectrum over frequency, both logarithmic."""
    grey = image @ np.array(LUMA)
    power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) for side in grey.shape), indexing="ij"))
    rings = list(pairwise(np.geomspace(2 / min(grey.shape), 0.5, 9)))
    points = [(np.log((a * b) ** 0.5), np.log(power[(radius >= a) & (radius < b)].mean())) for a, b in rings]
    return float(np.polyfit(*zip(*points, strict=True), 1)[0])


def main() -> None:
    """One line a folder."""
    for folder in sys.argv[1:]:
        images = list(islice(pictures(folder), MOST))
        found = check_noise(images)
        said = "too small" if found is None else f"{found.what if found.failed else 'pictures'}, {found.noise} noise"
        columns = []
        for name, measure in (("kurtosis", edge_kurtosis), ("neighbours", neighbours), ("slope", slope)):
            values = [value for image in images if (value := measure(image)) is not None]
            columns.append(f"{name} {np.min(values):.2f} {np.median(values):.2f} {np.max(values):.2f}")
        print(f"{folder}: n {len(images)}; {'; '.join(columns)}: {said}")


if __name__ == "__main__":
    main()
