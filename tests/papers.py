"""Small data sets in the layouts of the published ones, and checkpoint folders without weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raygen.core.face_labels import ATTRIBUTES
from raygen.models.checkpoint_documents import FORMAT
from raygen.models.checkpoint_folder import first_stage_config, open_parts
from raygen.store.sealed import seal_folder
from raygen.training.config.recipe import folders_of, is_denoiser

#: CelebA-HQ numbers, some of them in the test set of every published split.
NUMBERS = (0, 1, 28_000, 29_998, 29_999)
SIDE = 64


def raw_data(root: Path) -> None:
    """`data/` and `weights/` as the jobs of the papers expect them."""
    stable_diffusion(root / "weights/stable-diffusion-v1-5")
    _dialog(root / "data/CelebA-Dialog")
    _masks(root / "data/CelebAMask-HQ")
    for number in range(3):
        _picture(root / f"data/ffhq/00000/{number:05d}.png", number)
    for name in ("train", "test"):
        _people(root / "data/coco-person", name)
    for number in (28_000, 29_998, 29_999):
        _picture(root / f"data/results/sean/{number}.png", number)


def _picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)


def _dialog(root: Path) -> None:
    for number in NUMBERS:
        _picture(root / f"image/{number}.jpg", number)
        mask = Image.fromarray(np.full((SIDE, SIDE), number % 19, np.uint8))
        folder = root / "mask/CelebAMask-HQ-mask-color-palette"
        folder.mkdir(parents=True, exist_ok=True)
        mask.save(folder / f"{number}.png")
    sentences = {"Bangs": "a", "Eyeglasses": "b", "No_Beard": "No beard.", "Smiling": "c", "Young": "He is young."}
    entry = {"attribute_wise_captions": sentences, "overall_caption": "A face."}
    (root / "text").mkdir()
    (root / "text/captions_hq.json").write_text(json.dumps({f"{number}.jpg": entry for number in NUMBERS}))
    _attributes(root)


def _masks(root: Path) -> None:
    for number in NUMBERS:
        _picture(root / f"CelebA-HQ-img/{number}.jpg", number)
        for name, area in (("skin", np.s_[8:48, 8:48]), ("hair", np.s_[:10, :])):
            part = np.zeros((SIDE, SIDE), np.uint8)
            part[area] = 255
            path = root / f"CelebAMask-HQ-mask-anno/{number // 2000}/{number:05d}_{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part).save(path)
    _attributes(root)
    (root / "celebahqvalidation.txt").write_text("imgHQ28000.npy\nimgHQ29999.npy\n")


def _attributes(root: Path) -> None:
    rows = [f"{number}.jpg " + " ".join(["1", "-1"] * (len(ATTRIBUTES) // 2)) for number in NUMBERS]
    text = "\n".join([str(len(NUMBERS)), " ".join(ATTRIBUTES), *rows])
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text(text)


def _people(root: Path, name: str) -> None:
    lines = []
    for number in range(2):
        _picture(root / f"{name}/{number}.jpg", number)
        Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(root / f"{name}/{number}.png")
        entry = {"target": f"{name}/{number}.jpg", "mask": f"{name}/{number}.png", "prompts": ["A man walks."]}
        lines.append(json.dumps({**entry, "face_bbox": [[8, 8, 24, 24]]}))
    (root / f"{name}.jsonl").write_text("\n".join(lines))


def without_weights(job: Any, out: Path) -> None:
    """A checkpoint folder with the documents that a training would write, and no weights."""
    if not is_denoiser(job.model):
        _seal(out, {"first_stage": job.model.model_dump(mode="json")})
        return
    if job.model.kind == "control":
        base = open_parts(job.model)["base"].document
        model = job.model.model_copy(update={"base": "."}).model_dump(mode="json")
        _seal(out, {"first_stage": base["first_stage"], "model": model, "base": base["model"]})
        return
    experts = {name: Path(folder) for name, folder in folders_of(job.model).items()}
    stage = first_stage_config(str(next(iter(experts.values()), job.first_stage)))
    document = {"first_stage": stage.model_dump(mode="json")}
    for name, folder in experts.items():
        model = json.loads((folder / "raygen.json").read_text())["model"]
        _seal(out / "experts" / name, {**document, "model": model})
    nulls = {"nulls": []} if experts else {}
    _seal(out, {**document, "model": job.model.model_dump(mode="json") | nulls})


def stable_diffusion(root: Path) -> None:
    """The documents of Stable Diffusion 1.5 in its folder, without weights."""
    documents = {
        "model_index.json": {"_class_name": "StableDiffusionPipeline"},
        "unet/config.json": {
            "block_out_channels": [320, 640, 1280, 1280],
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
            "sample_size": 64,
        },
        "vae/config.json": {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4},
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "vocab_size": 49_408,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_act": "quick_gelu",
            "max_position_embeddings": 77,
            "layer_norm_eps": 1e-5,
        },
        "scheduler/scheduler_config.json": {
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
        },
    }
    for name, document in documents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(document))


def _seal(folder: Path, document: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    seal_folder(folder, "raygen.json", {"format": FORMAT, **document, "extra": {}})
