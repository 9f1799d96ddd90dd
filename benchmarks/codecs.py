"""Codecs of stored pictures in turns: pictures a second of one core and of several threads, and bytes a picture.

    python benchmarks/codecs.py [--size 256] [--rounds 5] [--threads 2]

The pictures are 64 drawn faces with noise of two grey values, which compress about as photographs do. Numbers are
medians over rounds; a thread column shows whether a codec lets other threads run.
"""

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np

from raygen.core.types import UInt8Array
from raygen.datasets import ProceduralDataSet
from raygen.store.images import Codec, decode_image, encode_image

CODECS = get_args(get_args(Codec)[0])


def faces(size: int) -> list[UInt8Array]:
    """64 pictures uint8 [size, size, 3]."""
    data = ProceduralDataSet(identities=16, pictures=4, size=size, seed=3)
    drawn = np.stack([decode_image(value["bytes"]) for value in data.load(data.listing())["image"].to_pylist()])
    noise = np.random.default_rng(0).integers(-2, 3, drawn.shape)
    return list(np.clip(drawn + noise, 0, 255).astype(np.uint8))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("--size", 256), ("--rounds", 5), ("--threads", 2)):
        parser.add_argument(name, type=int, default=value)
    options = parser.parse_args()
    pictures = faces(options.size)
    rates: dict[str, list[float]] = {codec: [] for codec in CODECS}
    threaded: dict[str, list[float]] = {codec: [] for codec in CODECS}
    size: dict[str, float] = {}
    with ThreadPoolExecutor(options.threads) as threads:
        for _ in range(options.rounds):
            for codec in CODECS:
                began = time.process_time()
                files = [encode_image(picture, codec) for picture in pictures]
                rates[codec].append(len(pictures) / (time.process_time() - began))
                began = time.perf_counter()
                list(threads.map(encode_image, pictures, [codec] * len(pictures)))
                threaded[codec].append(len(pictures) / (time.perf_counter() - began))
                size[codec] = sum(map(len, files)) / len(files) / 1024
                assert all(np.array_equal(decode_image(f), p) for f, p in zip(files, pictures, strict=True))
    print(f"| codec | pictures a second of CPU | {options.threads} threads, a second | KiB |\n|---|---|---|---|")
    for codec in CODECS:
        one, several = statistics.median(rates[codec]), statistics.median(threaded[codec])
        print(f"| `{codec}` | {one:,.0f} | {several:,.0f} | {size[codec]:.1f} |")


if __name__ == "__main__":
    main()
