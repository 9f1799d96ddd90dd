"""A Stable Diffusion folder, made here and tiny: opened as an ldm, a base for a branch, and nothing else."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from raygen.core.errors import InputError
from raygen.core.pixels import to_pixels
from raygen.models import checkpoint
from raygen.models.conditions import Conditions
from raygen.models.controlnet import ControlNetConfig, ControlNetLDM
from raygen.models.ldm import LDM

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (root / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (root / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(root / "vocab.json"), str(root / "merges.txt"), model_max_length=12)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=12,
            bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        layers_per_block=2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.18215,
    )
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(root / "model", safe_serialization=True)
    return root / "model"


def test_it_says_what_the_pipeline_says(folder: Path) -> None:
    model = checkpoint.load(folder)
    assert isinstance(model, LDM)
    assert model.modalities == {"text"}
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert model.schedule.beta_start == 0.00085
    zt, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    given = Conditions(
        n=2,
        text=model.tokenizer(["a face", "hat"]),
        present={"text": torch.tensor([True, False])},  # type: ignore[misc]
    )
    with torch.no_grad():
        said = model.predict(zt, t, model.prepare(model.embed(given)))
        ids = pipeline.tokenizer(["a face", ""], padding="max_length", max_length=12, return_tensors="pt").input_ids
        states = pipeline.text_encoder(ids).last_hidden_state
        torch.testing.assert_close(said, pipeline.unet(zt, t, states).sample, rtol=1e-4, atol=1e-5)
        pixels = to_pixels(torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8))
        z = model.first_stage.mode(model.first_stage.encode(pixels))
        wanted = pipeline.vae.encode(pixels).latent_dist.mode() * 0.18215
        torch.testing.assert_close(z, wanted, rtol=1e-4, atol=1e-5)


def test_a_branch_beside_it_and_a_folder_of_both(folder: Path, tmp_path: Path) -> None:
    assert checkpoint.first_stage_config(folder).image_size == 16
    assert checkpoint.load_tokenizer(folder) is not None
    config = ControlNetConfig(base=str(folder), hint="none")
    model = checkpoint.build(config, checkpoint.load_first_stage(folder), seed=0).eval()
    assert isinstance(model, ControlNetLDM)
    checkpoint.save(model, tmp_path / "branched")
    again = checkpoint.load(tmp_path / "branched")
    zt, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    given = Conditions(n=1, text=model.tokenizer(["face"]), present={"text": torch.ones(1, dtype=torch.bool)})  # type: ignore[misc]
    with torch.no_grad():
        one, other, base = (m.predict(zt, t, m.prepare(m.embed(given))) for m in (model, again, model.base))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, base)


def test_what_it_holds_names_it(folder: Path, tmp_path: Path) -> None:
    before = checkpoint.digest(folder)
    copy = tmp_path / "copy"
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.unet.conv_in.weight.data += 1
    pipeline.save_pretrained(copy)
    assert checkpoint.digest(copy) != before == checkpoint.digest(folder)


def test_another_network_is_refused_with_its_setting(folder: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.save_pretrained(tmp_path / "other")
    path = tmp_path / "other/unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_linear_projection": True}))
    with pytest.raises(InputError, match="use_linear_projection is True"):
        checkpoint.load(tmp_path / "other")
    (tmp_path / "other/vae/diffusion_pytorch_model.safetensors").write_bytes(b"no")
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_linear_projection": False}))
    with pytest.raises(InputError, match="vae: cannot be loaded"):
        checkpoint.load(tmp_path / "other")
