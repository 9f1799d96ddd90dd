#!/usr/bin/env bash
# torch.autocast around a whole loop that trains float32 weights in bfloat16.
#
# One would guess: `with torch.autocast(...)` chooses the precision of each operation, so it does not matter whether a
# training loop stands inside one such block or opens a new one in each step.
# What happens: the block keeps the bfloat16 copy of every weight that requires a gradient until it is left. The
# optimizer changes the float32 weight in place, and the network goes on with the old copy: gradients flow, weights move,
# the loss stays what it was. With `cache_enabled=False`, or one block a step, it trains.
# Why it matters: nothing fails and nothing warns. Fine-tuning of a few steps (Imagic, textual inversion, test-time
# tuning) is often written in one block around all of it, and then ends with weights that fit nothing that was seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.15.0" "numpy>=2"
"$folder/venv/bin/python" - <<'PYTHON'
import torch

print("torch", torch.__version__)


def losses(blocks: str, **options: bool) -> list[float]:
    torch.manual_seed(0)
    network = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x = torch.randn(64, 8)
    y = x.sum(dim=1, keepdim=True)
    found = []

    def step() -> None:
        loss = (network(x).float() - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())

    if blocks == "one":
        with torch.autocast("cpu", torch.bfloat16, **options):
            for _ in range(20):
                step()
    else:
        for _ in range(20):
            with torch.autocast("cpu", torch.bfloat16, **options):
                step()
    return found


results = {
    "a block a step": losses("many"),
    "one block": losses("one"),
    "one block, cache_enabled=False": losses("one", cache_enabled=False),
}
for case, found in results.items():
    print(f"{case:31} loss of step 1: {found[0]:.4f}, of step 20: {found[-1]:.4f}")
assert results["a block a step"][-1] < 0.2 * results["a block a step"][0], "the ordinary loop should train"
assert results["one block, cache_enabled=False"] == results["a block a step"], "the behaviour changed"
assert results["one block"][-1] == results["one block"][0], "the behaviour changed: one block trains"
PYTHON
