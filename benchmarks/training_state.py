"""How long a training waits for its states, and their memory, for this build and earlier ones.

    python benchmarks/training_state.py --builds /tmp/before . --parameters 64e6

Each build trains the same small autoencoder beside a parameter of that size without a gradient, so that a state holds
it twice: as weights and as their average. Prints the peak memory of the process, above that before the first state,
and how much longer a step takes after which a state is written.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = """
import sys, time
from pathlib import Path
import torch
from raygen.commands.registry import make
from raygen.training.trainer import Trainer, train
torch.set_num_threads(1)
def peak():  # of this program; what getrusage tells begins with the peak of the process that started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
root, size = Path(sys.argv[1]), int(sys.argv[2])
model = {"kind": "autoencoder", "image_size": 32, "patch": 2, "channels": [8, 8]}
what = {"faces": str(root / "faces"), "model": model}
training = {"steps": 16, "batch": 4, "save_every": 4, "log_every": 1, "keep": 1}
job = make({"kind": "train", **what, "training": training, "out": str(root / "out")})
objective = job.objective()
objective.module.register_parameter("ballast", torch.nn.Parameter(torch.zeros(size)))
trainer = Trainer(objective, job.training)
gaps, before = [], 0
last = time.perf_counter()
for step in train(trainer, job.arrays(limit=8), sys.argv[3]):
    now = time.perf_counter()
    gaps.append(now - last)
    before = before or peak()
    time.sleep(1)  # longer steps, beside which a state is finished
    last = time.perf_counter()
plain, saving = sorted(gaps[5::4] + gaps[6::4]), sorted(gaps[4::4])
waits = saving[len(saving) // 2] - plain[len(plain) // 2]
print(f"peak memory + {peak() - before:,.0f} MiB, the loop waits {waits:.2f} s for a state")
"""


def main() -> None:
    """Draw faces, then train with each build in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--builds", nargs="+", type=Path, default=[Path()], help="folders with the source of raygen")
    parser.add_argument("--parameters", type=float, default=64e6, help="number of parameters, of 4 bytes each")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from raygen.commands.registry import make

        data = {"kind": "procedural", "identities": 8, "pictures": 2, "size": 32}
        make({"kind": "ingest", "data": data, "out": f"{folder}/faces"}).run(lambda _: None)
        for number in range(options.rounds):
            for build in options.builds:
                environment = {**os.environ, "PYTHONPATH": str(build.resolve())}
                states = f"{folder}/{number}-{build.resolve().name}"
                command = [sys.executable, "-c", TRAIN, folder, str(int(options.parameters)), states]
                # In another folder: `-c` looks for modules in the current one first.
                ended = subprocess.run(
                    command, env=environment, capture_output=True, text=True, cwd=folder, check=False
                )
                print(f"{build}: {ended.stdout.strip() or ended.stderr[-1500:]}", flush=True)


if __name__ == "__main__":
    main()
