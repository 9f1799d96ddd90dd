"""A Stable Diffusion folder, made here and tiny: opened as an ldm, a base for a branch, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from raygen.core.errors import ConfigError, InputError
from raygen.core.pixels import to_pixels
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.conditions import Conditions
from raygen.models.config.controlnet import ControlNetConfig
from raygen.models.controlnet import ControlNetLDM
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


def said(folder: Path) -> torch.Tensor:
    """What the model of a folder says of one latent and text."""
    model = checkpoint.load(folder)
    zt, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500])
    present = {"text": torch.ones(1, dtype=torch.bool)}
    given = Conditions(n=1, text=model.tokenizer(["a face"]), present=present)  # type: ignore[misc]
    with torch.inference_mode():
        return model.predict(zt, t, model.prepare(model.embed(given)))


def parts_again(folder: Path, out: Path, **how: object) -> Path:
    """The pipeline of `folder` with its networks written in another way."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    shutil.copytree(folder, out)
    for name in ("unet", "vae", "text_encoder"):
        for path in (out / name).glob("*.safetensors"):
            path.unlink()
        part = getattr(pipeline, name)
        if name == "text_encoder" and how.get("safe_serialization") is False:  # transformers 5 writes no pickles
            torch.save(part.state_dict(), out / name / ("pytorch_model.fp16.bin" if "variant" in how else BIN))
            continue
        (part.half() if "variant" in how else part).save_pretrained(out / name, **how)
    return out


BIN = "pytorch_model.bin"


def test_weights_cut_into_other_files_give_the_same_bits(folder: Path, tmp_path: Path) -> None:
    """diffusers 0.42.1 and transformers 5.23.0 leave parameters where they lie in the mapped file; a convolution of
    torch 2.15.0 adds in another order at another alignment (8e-7 in a UNet's output)."""
    whole = said(folder)
    for size in ("40KB", "100KB", "170KB"):
        cut = parts_again(folder, tmp_path / size, max_shard_size=size)
        assert len(list((cut / "unet").glob("*.safetensors"))) > 1
        assert torch.equal(said(cut), whole)
        for tensor in checkpoint.load(cut).state_dict().values():
            assert tensor.data_ptr() % 64 == 0


@pytest.mark.parametrize(
    ("how", "files"),
    [
        ({"safe_serialization": False}, ["diffusion_pytorch_model.bin"]),
        ({"safe_serialization": False, "max_shard_size": "300KB"}, ["diffusion_pytorch_model.bin.index.json"]),
        ({"variant": "fp16"}, ["diffusion_pytorch_model.fp16.safetensors"]),
        ({"variant": "fp16", "max_shard_size": "150KB"}, ["diffusion_pytorch_model.safetensors.index.fp16.json"]),
        ({"variant": "fp16", "safe_serialization": False}, ["diffusion_pytorch_model.fp16.bin"]),
        ({"variant": "bf16"}, ["diffusion_pytorch_model.bf16.safetensors"]),
    ],
)
def test_half_precision_and_pickles_are_read(
    folder: Path, tmp_path: Path, how: dict[str, object], files: list[str]
) -> None:
    other = parts_again(folder, tmp_path / "other", **how)
    assert all((other / "unet" / file).is_file() for file in files)
    assert not (other / "unet" / "diffusion_pytorch_model.safetensors").exists()
    if "variant" in how:
        torch.testing.assert_close(said(other), said(folder), rtol=1e-2, atol=1e-2)
    else:
        assert torch.equal(said(other), said(folder))
    before = checkpoint_folder.digest(other)
    path = next(p for p in (other / "unet").iterdir() if p.suffix != ".json")
    path.write_bytes(path.read_bytes() + b" ")
    assert checkpoint_folder.digest(other) != before, "its weights name it"


def test_a_pickle_that_calls_something_is_not_run(folder: Path, tmp_path: Path) -> None:
    other = parts_again(folder, tmp_path / "other", safe_serialization=False)
    torch.save({"a": torch.zeros(2), "b": print}, other / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="print' by name"):
        checkpoint.load(other)


@pytest.mark.parametrize(("part", "error"), [("unet", InputError), ("text_encoder", ConfigError)])
def test_weights_of_other_names_and_formats_are_named(
    folder: Path, part: str, error: type[Exception], tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "other")
    (weights,) = (tmp_path / "other" / part).glob("*.safetensors")
    weights.rename(weights.with_suffix(".non_ema.safetensors"))
    (weights.parent / "model.onnx").write_bytes(b"x")
    with pytest.raises(error, match=rf"{part}: has \w+\.non_ema\.safetensors, model\.onnx, and \w+\.safetensors or"):
        checkpoint.load(tmp_path / "other")


def test_a_pointer_of_git_lfs_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "cloned")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3438167540\n"
    for part, error in (("unet", InputError), ("text_encoder", ConfigError)):
        (weights,) = (tmp_path / "cloned" / part).glob("*.safetensors")
        content = weights.read_bytes()
        weights.write_text(pointer)
        with pytest.raises(error, match=rf"{weights.name}: a git-lfs pointer to a file of 3,438,167,540 bytes"):
            checkpoint.load(tmp_path / "cloned")
        weights.write_bytes(content)


def test_a_branch_beside_it_and_a_folder_of_both(folder: Path, tmp_path: Path) -> None:
    assert checkpoint_folder.first_stage_config(folder).image_size == 16
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
    before = checkpoint_folder.digest(folder)
    copy = tmp_path / "copy"
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.unet.conv_in.weight.data += 1
    pipeline.save_pretrained(copy)
    assert checkpoint_folder.digest(copy) != before == checkpoint_folder.digest(folder)


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
