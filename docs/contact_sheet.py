"""The picture of the README: drawn faces, their masks, and the faces generated from these, of a quickstart run.

python docs/contact_sheet.py runs/quickstart docs/figures/quickstart.webp
"""

import io
import sys

import numpy as np
from PIL import Image

from raygen import load_dataset
from raygen.core.face_labels import colorize
from raygen.store.images import decode_mask

COLUMNS, SIDE, GAP = 10, 96, 4


def tile(array_or_bytes: object) -> Image.Image:
    """A picture at the side of the sheet."""
    image = (
        Image.open(io.BytesIO(array_or_bytes)) if isinstance(array_or_bytes, bytes) else Image.fromarray(array_or_bytes)
    )
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main(run: str, out: str) -> None:
    """Every n-th sample of the run, so that different people are shown."""
    samples = load_dataset(f"{run}/samples", columns=["sample_id", "image", "mask", "source"]).to_pylist()
    drawn = {
        row["face_id"]: row["image"] for row in load_dataset(f"{run}/faces", columns=["face_id", "image"]).to_pylist()
    }
    shown = samples[7 :: len(samples) // COLUMNS][:COLUMNS]
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, 3 * (SIDE + GAP) - GAP), "white")
    for i, row in enumerate(shown):
        mask = colorize(decode_mask(row["mask"]["bytes"]))
        for j, content in enumerate((drawn[row["source"]]["bytes"], np.asarray(mask, np.uint8), row["image"]["bytes"])):
            sheet.paste(tile(content), (i * (SIDE + GAP), j * (SIDE + GAP)))
    sheet.save(out, quality=92)


if __name__ == "__main__":
    main(*sys.argv[1:])
