"""Time of the last step of a Fréchet distance: from two covariances to a number.

    python benchmarks/frechet_finish.py [--threads 1] [--width 2048] [--rows 10000] [--rounds 3]

cached      a reference with its factor (`FactoredReference`), `frechet_to`: two products and eigvalsh
whole       `frechet`: the factor of the reference is computed as well
sqrtm       scipy.linalg.sqrtm of the product, as in pytorch-fid and clean-fid

All cases run in one process and alternate within a round, on the same random features (not negative, falling
spectrum). Times are medians over rounds; ratios are taken within a round, with median, lowest and highest.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Measure and print a table."""
    arguments = _arguments()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(arguments.threads)  # read when numpy is imported, which is below
    import numpy as np
    from scipy import linalg

    from raygen.metrics.frechet import FactoredReference, Moments, frechet, frechet_to

    random = np.random.default_rng(0)
    mix = random.normal(size=(arguments.width, arguments.width)) * np.geomspace(1, 0.03, arguments.width)
    a, b = (
        Moments.of(np.maximum(random.normal(size=(arguments.rows, arguments.width)) @ mix.T / 20 + shift, 0))
        for shift in (0.3, 0.32)
    )
    reference = FactoredReference.of(a)

    def by_square_root() -> float:
        root = np.real(linalg.sqrtm(a.covariance @ b.covariance))
        gap = a.mean - b.mean
        return float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root))

    cases: dict[str, Callable[[], float]] = {
        "cached": lambda: frechet_to(reference, b).value,
        "whole": lambda: frechet(a, b).value,
        "sqrtm": by_square_root,
    }
    wall: dict[str, list[float]] = {name: [] for name in cases}
    cpu: dict[str, list[float]] = {name: [] for name in cases}
    value: dict[str, float] = {}
    for turn in range(arguments.rounds):
        order = list(cases)[turn % 3 :] + list(cases)[: turn % 3]
        for name in order:
            start, busy = time.perf_counter(), time.process_time()
            value[name] = cases[name]()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - busy)
            print(f"round {turn + 1}: {name} {wall[name][-1]:.2f} s", file=sys.stderr)
    print(f"width {arguments.width}, {arguments.rows} rows, {arguments.threads} threads, {arguments.rounds} rounds\n")
    print("| | wall s | CPU s | sqrtm is so many times as long (CPU) | distance less sqrtm's |")
    print("|---|---|---|---|---|")
    for name in cases:
        ratio = np.array(cpu["sqrtm"]) / np.array(cpu[name])
        print(
            f"| {name} | {np.median(wall[name]):.2f} | {np.median(cpu[name]):.2f} "
            f"| {np.median(ratio):.1f} ({ratio.min():.1f}, {ratio.max():.1f}) | {value[name] - value['sqrtm']:.1e} |"
        )


if __name__ == "__main__":
    main()
