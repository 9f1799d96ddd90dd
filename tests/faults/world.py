"""A tiny job of every command, and what its result is compared by."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from raygen.commands.registry import make
from raygen.extractors.bundled import BundledParser, save_bundled
from raygen.extractors.config import BundledParserConfig
from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.store.filesystem import FileStore
from raygen.store.parquet import from_parquet

SIZE = 32
#: Facts about a command and not about its result: times, and what was running.
VOLATILE = {
    "created",
    "elapsed",
    "environment",
    "finished",
    "images_per_s",
    "seconds",
    "timings",
    "trained_s",
    "data_wait",
    # Of records that hold such facts.
    "record_sha256",
    "commits_sha256",
}
#: Files that tell about a command: each repetition may write others.
OF_COMMANDS = ("run.json", "starts/", "events.out", "tensorboard/", "training/MANIFEST.json")


def prepare(root: Path) -> None:
    """The inputs of the jobs: faces, conditions, samples, and models of a few hundred parameters."""
    torch.manual_seed(0)
    stage = FirstStage(
        AutoencoderConfig(image_size=SIZE, patch=2, channels=(4, 4), latent_channels=2, mid_attention=False)
    )
    config = LDMConfig(modalities=("mask",), channels=(4, 8), attention=(False, False), head_dim=4, mask_channels=2)
    checkpoint.save(checkpoint.build(config, stage, seed=0), root / "model")
    parser = BundledParser(BundledParserConfig(image_size=SIZE, channels=(8, 16)))
    save_bundled(parser, root / "parser", weights="float32", extra={})
    for kind, name in (("ingest", "faces"), ("plan", "conditions"), ("generate", "samples")):
        run(job(kind, root, str(root / name)))


def run(document: dict[str, Any]) -> None:
    """Run a job here."""
    make(document).run(lambda _: None)


def job(kind: str, root: Path, out: str) -> dict[str, Any]:
    """The job of a command, two shards long; `out` is a folder or a URL. `export:csv` is an export in that format."""
    parser = {"kind": "small", "folder": str(root / "parser")}
    score = {"parser": parser, "features": parser, "classifier": None}
    sampling = {
        "conditions": str(root / "conditions"),
        "checkpoint": str(root / "model"),
        "ignore": ["attributes"],
        "batch": 2,
        "shard_rows": 4,
        "sampler": {"name": "ddim", "steps": 1},
    }
    settings: dict[str, dict[str, Any]] = {
        "ingest": {
            "data": {"kind": "procedural", "identities": 4, "pictures": 2, "size": 32, "seed": 1},
            "batch": 4,
            "shard_rows": 4,
        },
        "plan": {"faces": str(root / "faces"), "planning": {"kind": "from_faces"}, "shard_rows": 4},
        "encode": {"faces": str(root / "faces"), "checkpoint": str(root / "model"), "batch": 4, "shard_rows": 4},
        "generate": sampling,
        "evaluate": {
            "samples": str(root / "samples"),
            "reference": str(root / "faces"),
            "score": score,
            "batch": 4,
            "shard_rows": 4,
        },
        "select": {
            "generate": {**sampling, "score": score},
            "gates": [{"kind": "score", "metric": "miou", "min": 0.0}],
            "max_retries": 1,
        },
        "train": {
            "faces": str(root / "faces"),
            "model": {"kind": "ldm", "modalities": [], "channels": [4, 8], "attention": [False, False], "head_dim": 4},
            "first_stage": str(root / "model"),
            "split": None,
            "training": {"steps": 3, "batch": 2, "log_every": 1, "save_every": 1, "sheet_every": 2, "warmup": 1},
        },
    }
    command, _, form = kind.partition(":")
    if command == "export":
        settings["export"] = {"samples": str(root / "samples"), "format": {"kind": form}, "shard_rows": 4}
    return {"kind": command, **settings[command], "out": out}


def result(out: str) -> dict[str, str]:
    """Name -> sha256 of every file of a result that must not depend on what happened on the way.

    Of commits only the names: they say when and where a shard was made, and there is one for each.
    """
    store, found = FileStore(out), {}
    for name in sorted(name for name, _ in store.files("")):
        if "/commits/" in name:
            found[name] = ""
            continue
        if any(part in name for part in OF_COMMANDS):
            continue
        data = store.get(name)
        if name.endswith((".json", ".jsonl", "_SUCCESS")):
            lines = data.splitlines() if name.endswith("l") else [data]
            data = "\n".join(json.dumps(_plain(json.loads(line)), sort_keys=True) for line in lines).encode()
        elif name.startswith("metrics/") and name.endswith(".parquet"):
            data = repr(from_parquet(data).drop(["created"]).to_pylist()).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items() if key not in VOLATILE}
    return [_plain(value) for value in node] if isinstance(node, list) else node
