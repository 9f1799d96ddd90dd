"""CPU time of planning identities and of the digests of tables, for this build and earlier ones.

    git worktree add /tmp/before COMMIT
    python benchmarks/planning.py --builds /tmp/before . --identities 2000 --pictures 50

Each build runs in processes of its own, in turns, and draws its own faces, because the form of runs may differ. Times
are CPU seconds of the process, so that others on the machine count little; the smaller of two.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PLAN = """
import json, sys, time
from raygen import run
faces, out, identities, pictures = sys.argv[1:]
job = {"kind": "plan", "faces": faces, "out": out, "resources": {"runner": "local"}, "planning": {
    "kind": "identities", "identities": int(identities), "pictures": int(pictures), "seed": 7, "masks": "own",
    "keep": {"styles": ["skin", "nose"]}, "vary": {"styles": ["hat", "cloth"], "attributes": []}}}
path = out + ".json"
open(path, "w").write(json.dumps(job))
import raygen.commands.plan, raygen.planning, raygen.models.conditions  # imports are not planning
began = time.process_time()
run(path)
print(json.dumps({"plan": time.process_time() - began}))
"""
FACES = """
import json, sys
from raygen import run
out, people = sys.argv[1:]
data = {"kind": "procedural", "identities": int(people), "pictures": 1, "size": 64, "seed": 7}
job = {"kind": "ingest", "data": data, "resources": {"runner": "local"}, "out": out}
path = out + ".json"
open(path, "w").write(json.dumps(job))
run(path)
"""
DIGESTS = """
import json, time
import numpy as np, pyarrow as pa
from raygen.store.schemas import EXPORTED, LATENTS, SCORES, cast
from raygen.store.set_digest import table_digest
random, n = np.random.default_rng(0), 2000
def vectors(dtype, width):
    values = pa.array(random.standard_normal(n * width).astype(dtype))
    return pa.ListArray.from_arrays(pa.array(range(0, n * width + 1, width), pa.int32()), values)
ids = [f"s{i:06d}" for i in range(n)]
tables = {
    "latents": cast(pa.table({"face_id": ids, "transform": ["none"] * n, "autoencoder": ["a"] * n,
        "moments": vectors(np.float16, 8192), "shape": pa.array([[8, 32, 32]] * n, pa.list_(pa.int32()))}), LATENTS),
    "scores": cast(pa.table({"sample_id": ids, "attempt": pa.array([0] * n, pa.int32()), "metric": ["features:f"] * n,
        "run_id": ["r"] * n, "vector": vectors(np.float32, 2048)}), SCORES),
    "exported": cast(pa.table({"sample_id": ids, "path": [f"images/{i}.png" for i in ids], "bytes": [9000] * n,
        "sha256": ["ab" * 32] * n}), EXPORTED),
}
times = {}
for name, table in tables.items():
    began = time.process_time()
    table_digest(name, table)
    times[f"digest of {name}"] = time.process_time() - began
print(json.dumps(times))
"""


def measured(build: Path, code: str, *arguments: str) -> dict[str, float]:
    """What a script prints as JSON when `build` runs it."""
    environment = {**os.environ, "PYTHONPATH": str(build.resolve())}
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=build,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = ran.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}


def main() -> None:
    """Print CPU seconds by case and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--builds", nargs="+", type=Path, default=[Path()], help="folders with the source of raygen")
    parser.add_argument("--identities", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--faces", type=int, default=2600, help="people that are drawn")
    options = parser.parse_args()
    times: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, build in enumerate(options.builds):
            measured(build, FACES, f"{folder}/faces-{number}", str(options.faces))
        for turn in range(2):
            for number, build in enumerate(options.builds):
                what = (f"{folder}/faces-{number}", f"{folder}/plan-{number}-{turn}")
                found = measured(build, PLAN, *what, str(options.identities), str(options.pictures))
                for case, seconds in (found | measured(build, DIGESTS)).items():
                    known = times.setdefault(case, {})
                    known[number] = min(seconds, known.get(number, seconds))
    for case, by_build in times.items():
        cells = "  ".join(f"{seconds:9.3f} s" for _, seconds in sorted(by_build.items()))
        print(f"{case:22}{cells}   {by_build[0] / by_build[len(options.builds) - 1]:.1f} times less CPU")


if __name__ == "__main__":
    main()
