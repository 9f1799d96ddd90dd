"""Stable Diffusion and ControlNets in their original layout, held against diffusers' own converters."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint, convert_ldm_unet_checkpoint
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from raygen.convert.convert import convert, inspect
from raygen.convert.parts import Options
from raygen.core.errors import InputError
from raygen.models import checkpoint
from raygen.models.controlnet import ControlNetLDM
from raygen.models.ldm import LDM
from tests.convert.published_networks import Stage, UNet, buffers, with_prefix

UNET, STAGE, READER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
WORDS = 12


def _clip() -> CLIPTextModel:
    torch.manual_seed(3)
    config = CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=16,
        projection_dim=64,
    )
    return CLIPTextModel(config).eval()


def _vocabulary(folder: Path) -> str:
    backend = Backend(WordLevel({w: i for i, w in enumerate(["<pad>", "<unk>", *map(str, range(WORDS - 2))])}, "<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return str(folder)


def _stable() -> tuple[UNet, CLIPTextModel, dict[str, Tensor]]:
    torch.manual_seed(1)
    unet = UNet((32, 64), (True, False), context=64, heads=8, latent=4, out=4).eval()
    clip, stage = _clip(), Stage((32, 32, 64), latent=4)
    text = {f"{READER}text_model.{name.removeprefix('text_model.')}": v for name, v in clip.state_dict().items()}
    state = {
        **with_prefix(unet, UNET),
        **with_prefix(stage, STAGE),
        **text,
        **buffers(1000, 0.00085, 0.012),
        f"{READER}text_model.embeddings.position_ids": torch.arange(16)[None],
        "model_ema.decay": torch.tensor(0.9999),
    }
    return unet, clip, state


class Branch(nn.Module):
    """A ControlNet under its published names: the encoder half, the hint's encoder, and zero convolutions."""

    def __init__(self) -> None:
        super().__init__()
        whole = UNet((32, 64), (True, False), context=64, heads=8, latent=4, out=4)
        self.time_embed, self.input_blocks = whole.time_embed, whole.input_blocks
        self.middle_block = whole.middle_block
        widths = [16, 16, 32, 32, 96, 96, 256]
        hint: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1)]
        for a, b in pairwise(widths):
            hint += [nn.SiLU(), nn.Conv2d(a, b, 3, padding=1)]
        self.input_hint_block = nn.Sequential(*hint, nn.SiLU(), nn.Conv2d(256, 32, 3, padding=1))
        sizes = [32, 32, 32, 32, 64, 64]
        self.zero_convs = nn.ModuleList(nn.Sequential(nn.Conv2d(c, c, 1)) for c in sizes)
        self.middle_block_out = nn.Sequential(nn.Conv2d(64, 64, 1))


def _saved(state: dict[str, Tensor], path: Path) -> Path:
    torch.save({"state_dict": state}, path)
    return path


@torch.no_grad()
def test_stable_diffusion_predicts_as_its_original(tmp_path: Path) -> None:
    unet, clip, state = _stable()
    options = Options(image_size=32, vocabulary=_vocabulary(tmp_path / "tokenizer"))
    account = convert(None, [_saved(state, tmp_path / "v1-5.ckpt")], tmp_path / "out", options)
    assert account.family == "sd15"
    model = checkpoint.load(tmp_path / "out")
    assert isinstance(model, LDM)
    assert (model.config.noise.beta_start, model.config.noise.beta_end) == (0.00085, 0.012)
    assert model.first_stage.net.config.scaling_factor == 0.18215
    config = {**model.unet.config, "class_embed_type": None}
    theirs = convert_ldm_unet_checkpoint(dict(state), config)
    assert theirs.keys() == model.unet.state_dict().keys()
    assert all(torch.equal(value, theirs[name]) for name, value in model.unet.state_dict().items())
    ids = torch.tensor([[3, 4, 5, *[0] * 13]])
    zt, t = torch.randn(1, 4, 8, 8), torch.tensor([501])
    context = clip(input_ids=ids).last_hidden_state
    assert model.text_encoder is not None
    assert torch.allclose(model.text_encoder(ids), context, atol=1e-5)
    assert (model.predict(zt, t, model.prepare({"text_tokens": context})) - unet(zt, t, context)).abs().max() < 1e-5


def _control(state: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {**state, **with_prefix(Branch(), "control_model.")}


@pytest.mark.parametrize("apart", [False, True])
def test_a_controlnet_becomes_a_branch(apart: bool, tmp_path: Path) -> None:
    _, _, state = _stable()
    both = _control(state)
    branch = {name: value for name, value in both.items() if name.startswith("control_model.")}
    # Hints are eight times as large as latents: a first stage of four levels.
    stage = Stage((32, 32, 32, 64), latent=4)
    state = {n: v for n, v in state.items() if not n.startswith(STAGE)} | with_prefix(stage, STAGE)
    options = Options(image_size=64, vocabulary=_vocabulary(tmp_path / "tokenizer"))
    if apart:
        files = [_saved(branch, tmp_path / "control.pth"), _saved(state, tmp_path / "v1-5.ckpt")]
        alone = inspect(files[:1])
        assert alone.problems == ["no Stable Diffusion in it: give its file as well, after it"]
        with pytest.raises(InputError, match="no Stable Diffusion in it"):
            convert("controlnet", files[:1], tmp_path / "out", options)
    else:
        files = [_saved({**state, **branch}, tmp_path / "control.pth")]
    account = convert(None, files, tmp_path / "out", options)
    assert account.family == "controlnet"
    model: Any = checkpoint.load(tmp_path / "out")
    assert isinstance(model, ControlNetLDM)
    assert model.modalities == {"text", "hint"}
    theirs = convert_controlnet_checkpoint(dict(both), {**model.branch.config, "class_embed_type": None})
    ours = model.branch.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
