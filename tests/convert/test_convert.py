"""Published checkpoints: every name accounted for at full size, and every number equal at a small one."""

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from raygen.cli import app
from raygen.commands.registry import make
from raygen.commands.verify import verify
from raygen.convert.convert import convert, inspect
from raygen.convert.parts import Options
from raygen.core.errors import ConfigError, InputError
from raygen.models import checkpoint
from raygen.models.collaborative import Collaborative
from raygen.models.conditions import Conditions
from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.sampler import SamplerConfig
from raygen.models.ldm import LDM
from raygen.models.scadm import SCADM
from raygen.models.schedulers import build_sampler
from raygen.store.run_store import RunStore
from tests.convert.published_networks import (
    CLASSES,
    MaskTokens,
    Stage,
    StyleEncoder,
    TextTransformer,
    UNet,
    buffers,
    moving_average,
    with_prefix,
)

CLOSE = 1e-5
UNET, STAGE, READER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
State = dict[str, Tensor]


# --- full size: names, shapes, totals -----------------------------------------------------------------------


def _full() -> dict[str, tuple[State, dict[str, int], int]]:
    """Family -> (its state without values, parameters by part, keys), as published."""
    levels, attention = (224, 448, 672, 896), (False, True, True, True)
    with torch.device("meta"):
        vq = Stage((128, 256, 512), codes=8192)
        kl4, kl8 = Stage((128, 256, 512)), Stage((128, 256, 512, 512))
        plain = UNet(levels, attention)
        styled = UNet(levels, attention, context=1280, head_dim=32, spade=128)
        expert = UNet((192, 384, 576, 960), attention, context=640, heads=32)
        diffuser = UNet((32, 64, 96, 160), attention, context=640, heads=32, out=1)
        text = TextTransformer(30522, 640, 32)
        masks, styles = MaskTokens(32, 640), StyleEncoder()
    dyn = "confidence_predictor.diffusion_model."
    celeba = with_prefix(plain, UNET)
    sca = with_prefix(styled, UNET)
    readers = {
        **with_prefix(masks, f"{READER}seg_mask_cond_stage_model."),
        **with_prefix(text, f"{READER}text_cond_stage_model.transformer."),
    }
    codiff = {
        **with_prefix(diffuser, f"model.seg_mask_{dyn}"),
        **with_prefix(diffuser, f"model.text_{dyn}"),
        **with_prefix(expert, "model.seg_mask_unet.diffusion_model."),
        **readers,
        **with_prefix(expert, "model.text_unet.diffusion_model."),
        **with_prefix(kl4, STAGE),
        **buffers(),
    }
    loss = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4)}
    return {
        "ldm-celebahq": (
            {**celeba, **moving_average(celeba), **with_prefix(vq, STAGE), **buffers()},
            {"unet": 274_056_163, "vae": 55_322_782},
            368 + 370 + 205 + 12,
        ),
        "codiff-mask": (
            {**with_prefix(expert, UNET), **with_prefix(kl4, STAGE), **with_prefix(masks, READER), **buffers()},
            {"unet": 403_623_939, "vae": 55_312_063, "mask_encoder": 656_000},
            688 + 204 + 2 + 12,
        ),
        "codiff-text": (
            {
                **with_prefix(expert, UNET),
                **with_prefix(kl4, STAGE),
                **with_prefix(text, f"{READER}transformer."),
                **buffers(),
            },
            # The published total of the reader, 186,154,682, has an output layer that nothing reads.
            {"unet": 403_623_939, "text_encoder": 186_154_682 - 30522 * 641},
            688 + 204 + 422 + 12,
        ),
        "codiff": (
            codiff,
            {
                "diffusers/mask": 13_136_321,
                "diffusers/text": 13_136_321,
                "experts/mask/unet": 403_623_939,
                "experts/text/unet": 403_623_939,
            },
            3392,
        ),
        "sca-dm": (
            {**sca, **moving_average(sca), **with_prefix(vq, STAGE), **with_prefix(styles, READER), **buffers()},
            # 486,912,387 with the label embedding that nothing reads.
            {"unet": 486_912_387 - 19 * 896, "style_encoder": 18_069_304, "vae": 55_322_782},
            801 + 803 + 205 + 58 + 12,
        ),
        "vq-f4": ({**with_prefix(vq, ""), **loss}, {"vae": 55_322_782}, 207),
        "kl-f4": ({**with_prefix(kl4, ""), **loss}, {"vae": 55_312_063}, 206),
        "kl-f8": ({**with_prefix(kl8, ""), **loss}, {"vae": 83_639_999}, 250),
    }


def _hollow(state: Mapping[str, Tensor], path: Path) -> Path:
    """A safetensors file of these names and shapes whose values take no room: zeros, but for what is small."""
    header: dict[str, Any] = {}
    at, small = 0, []
    for name, value in sorted(state.items(), key=lambda item: item[0] != "betas"):
        size = value.numel() * 4
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, at + size]}
        if not value.is_meta and name == "betas":
            small.append((at, value.numpy().tobytes()))
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for offset, data in small:
            file.seek(8 + len(text) + offset)
            file.write(data)
        file.truncate(8 + len(text) + at)
    return path


@pytest.mark.parametrize(
    "family", ["ldm-celebahq", "codiff-mask", "codiff-text", "codiff", "sca-dm", "vq-f4", "kl-f4", "kl-f8"]
)
def test_every_name_of_a_published_checkpoint_is_accounted_for(family: str, tmp_path: Path) -> None:
    state, totals, keys = _full()[family]
    assert len(state) == keys
    account = inspect([_hollow(state, tmp_path / "model.safetensors")])
    assert account.problems == []
    assert account.family == family
    assert {name: account.parts[name][1] for name in totals} == totals
    assert sum(tensors for tensors, _ in account.parts.values()) + sum(account.left.values()) == keys


LISTS = {
    "cd_unet": lambda: UNet((192, 384, 576, 960), (False, True, True, True), context=640, heads=32),
    "cd_dyn": lambda: UNet((32, 64, 96, 160), (False, True, True, True), context=640, heads=32, out=1),
    "cd_text": lambda: TextTransformer(30522, 640, 32),
    "cd_vae256": lambda: Stage((128, 256, 512)),
    "cd_vae512": lambda: Stage((128, 256, 512, 512)),
    "vq_f4": lambda: Stage((128, 256, 512), codes=8192),
    "ldm_celebahq_ffhq": lambda: UNet((224, 448, 672, 896), (False, True, True, True)),
    "ffhq128_192": lambda: UNet((192, 384, 576, 768), (False, True, True, True)),
    "sca_unet": lambda: UNet((224, 448, 672, 896), (False, True, True, True), context=1280, spade=128),
    "sca_style": StyleEncoder,
}


@pytest.mark.real
@pytest.mark.parametrize("name", LISTS)
def test_our_references_have_the_names_and_shapes_that_were_published(name: str, real_data: Path) -> None:
    listed = real_data.parent / "reference" / "published_keys" / f"{name}.tsv"
    if not listed.is_file():
        pytest.skip(f"{listed} is not there")
    rows = (line.split("\t") for line in listed.read_text().splitlines())
    published = {key: tuple(int(n) for n in re.findall(r"\d+", shape)) for key, shape, _ in rows}
    with torch.device("meta"):
        ours = {key: tuple(value.shape) for key, value in LISTS[name]().state_dict().items()}
    assert ours == published


# --- small: numbers -----------------------------------------------------------------------------------------

SMALL = {"channels": (32, 64), "attention": (False, True)}
STAGES = (32, 32, 64)  # three levels, as f4 has
OPTIONS = Options(image_size=32)


def _random(module: nn.Module, seed: int) -> Any:
    """Every parameter of a size that lets each layer be seen in the output, and keeps what passes at its size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise + (1 if name.endswith("weight") else 0))
    return module.eval()


def _saved(state: State, path: Path, **more: Any) -> Path:
    torch.save({"state_dict": state, "epoch": 3, "global_step": 10, **more}, path)
    return path


def _close(one: Tensor, other: Tensor) -> None:
    assert one.abs().max() > 0.01, "too quiet to compare"
    assert (one - other).abs().max() < CLOSE * max(1.0, float(other.abs().max()))


def _masks(n: int = 2, size: int = 32) -> tuple[Tensor, Tensor]:
    """Class indices uint8 [n, size, size], and one-hot [n, 19, size, size]."""
    generator = torch.Generator().manual_seed(5)
    blocks = torch.randint(0, CLASSES, (n, size // 8, size // 8), generator=generator)
    labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return labels.to(torch.uint8), torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).float()


def _noisy(n: int = 2, side: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(6)), torch.tensor([981, 21])[:n]


@torch.no_grad()
def _predicted(model: Any, conditions: Conditions, zt: Tensor, t: Tensor) -> Tensor:
    return model.predict(zt, t, model.prepare(model.embed(conditions)))


@pytest.mark.parametrize("codes", [0, 64])
@torch.no_grad()
def test_a_first_stage_encodes_and_decodes_as_published(codes: int, tmp_path: Path) -> None:
    stage = _random(Stage(STAGES, codes=codes), 1)
    loss = {"loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1)}
    file = _saved({**stage.state_dict(), **loss}, tmp_path / "vae.ckpt")
    account = convert(None, [file], tmp_path / "out", OPTIONS)
    assert account.family == ("vq-f4" if codes else "kl-f4")
    said = account.facts().get("note", "")
    assert bool(said) == (not codes), "a codebook has no factor"
    assert not said or ("multiplied by 0.058, as in Collaborative Diffusion" in said and "0.18215" in said)
    assert not inspect([file], None, Options(image_size=32, scaling_factor=0.18215)).notes
    loaded = checkpoint.load_first_stage(tmp_path / "out")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    moments = stage.encode(pixels)
    _close(loaded.encode(pixels), moments)
    scale = 1.0 if codes else 0.058
    z = moments if codes else moments[:, :3]
    _close(loaded.mode(moments), scale * z)
    _close(loaded.decode(scale * z), stage.decode(z))


@pytest.mark.parametrize(("weights", "place"), [(None, "params_ema"), ("ema", "params_ema"), ("raw", "params")])
@torch.no_grad()
def test_the_average_that_a_file_keeps_apart_is_taken_and_said(weights: str | None, place: str, tmp_path: Path) -> None:
    raw, average = (
        {f"module.{name}": value for name, value in _random(Stage(STAGES), seed).state_dict().items()}
        for seed in (1, 2)
    )
    torch.save({"params": raw, "params_ema": average}, tmp_path / "vae.pth")
    options = Options(image_size=32, weights=weights)
    said = f"under {place!r}, names without 'module.'"
    assert inspect([tmp_path / "vae.pth"], None, options).facts()["file vae.pth"].endswith(said)
    convert(None, [tmp_path / "vae.pth"], tmp_path / "out", options)
    loaded = checkpoint.load_first_stage(tmp_path / "out")
    wanted = (raw if place == "params" else average)["module.encoder.conv_in.weight"]
    assert torch.equal(loaded.net.state_dict()["encoder.conv_in.weight"], wanted)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_an_unconditional_model_predicts_as_published(weights: str, tmp_path: Path) -> None:
    unet, stage = _random(UNet(**SMALL), 1), _random(Stage(STAGES, codes=64), 2)
    raw = with_prefix(unet, UNET)
    state = {**raw, **moving_average(raw), **with_prefix(stage, STAGE), **buffers()}
    account = convert(
        "ldm-ffhq",
        [_saved(state, tmp_path / "model.ckpt")],
        tmp_path / "out",
        Options(image_size=32, weights=None if weights == "ema" else weights),
    )
    model = checkpoint.load(tmp_path / "out")
    assert isinstance(model, LDM)
    assert model.config.noise.beta_end == 0.0195
    if weights == "ema":
        unet.load_state_dict({name: 0.9 * value for name, value in unet.state_dict().items()})
    zt, t = _noisy()
    _close(_predicted(model, model.null(2), zt, t), unet(zt, t).detach())
    assert any("moving average" in why for why in account.left)


def test_other_schedules_are_read_from_the_file(tmp_path: Path) -> None:
    unet, stage = _random(UNet(**SMALL), 1), _random(Stage(STAGES, codes=64), 2)
    state = {**with_prefix(unet, UNET), **with_prefix(stage, STAGE), **buffers(1000, 0.0015, 0.0205)}
    convert("ldm-ffhq", [_saved(state, tmp_path / "model.ckpt")], tmp_path / "out", OPTIONS)
    assert checkpoint.load(tmp_path / "out").schedule.beta_end == 0.0205
    state["betas"] = torch.rand(1000).clamp(min=0.001) * 0.01
    with pytest.raises(InputError, match="follow no schedule"):
        convert("ldm-ffhq", [_saved(state, tmp_path / "model.ckpt")], tmp_path / "other", OPTIONS)


def _vocabulary(path: Path, words: int) -> str:
    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "she", "smiles", *(f"w{i}" for i in range(words - 7))]
    path.write_text("\n".join(listed) + "\n")
    return str(path)


def _text_ids() -> Tensor:
    return torch.tensor([[2, 5, 6, 3, *[0] * 12], [2, 6, 1, 5, 3, *[0] * 11]])


def _conditions(mask: Tensor | None = None, ids: Tensor | None = None, **more: Any) -> Conditions:
    here = {name: torch.ones(2, dtype=torch.bool) for name, v in (("mask", mask), ("text", ids)) if v is not None}
    return Conditions(2, mask=mask, text=ids, **{**more, "present": {**here, **more.get("present", {})}})


def test_the_mask_expert_predicts_as_published(tmp_path: Path) -> None:
    unet = _random(UNet(**SMALL, context=64, heads=32), 1)
    reader, stage = _random(MaskTokens(32, 64), 2), _random(Stage(STAGES), 3)
    state = {**with_prefix(unet, UNET), **with_prefix(reader, READER), **with_prefix(stage, STAGE), **buffers()}
    convert(None, [_saved(state, tmp_path / "256_mask.ckpt")], tmp_path / "out", OPTIONS)
    labels, one_hot = _masks()
    zt, t = _noisy()
    model = checkpoint.load(tmp_path / "out")
    _close(_predicted(model, _conditions(labels), zt, t), unet(zt, t, reader(one_hot)).detach())


def test_the_text_expert_predicts_as_published(tmp_path: Path) -> None:
    unet = _random(UNet(**SMALL, context=64, heads=32), 1)
    reader, stage = _random(TextTransformer(40, 64, 2, head_dim=8, length=16), 2), _random(Stage(STAGES), 3)
    state = {**with_prefix(unet, UNET), **with_prefix(reader, f"{READER}transformer."), **with_prefix(stage, STAGE)}
    options = Options(image_size=32, vocabulary=_vocabulary(tmp_path / "vocab.txt", 40))
    convert(None, [_saved({**state, **buffers()}, tmp_path / "256_text.ckpt")], tmp_path / "out", options)
    model, ids = checkpoint.load(tmp_path / "out"), _text_ids()
    assert model.tokenizer is not None
    assert torch.equal(model.tokenizer(["She smiles", "smiles ? she"]), ids)
    zt, t = _noisy()
    _close(_predicted(model, _conditions(ids=ids), zt, t), unet(zt, t, reader(ids)).detach())


def test_the_collaboration_mixes_as_published(tmp_path: Path) -> None:
    levels = {**SMALL, "context": 64, "heads": 32}
    mask, text = _random(UNet(**levels), 1), _random(UNet(**levels), 2)
    small = {**levels, "channels": (32, 32)}
    by_mask, by_text = _random(UNet(**small, out=1), 3), _random(UNet(**small, out=1), 4)
    shapes, words = _random(MaskTokens(32, 64), 5), _random(TextTransformer(40, 64, 2, head_dim=8, length=16), 6)
    state = {
        **with_prefix(mask, "model.seg_mask_unet.diffusion_model."),
        **with_prefix(text, "model.text_unet.diffusion_model."),
        **with_prefix(by_mask, "model.seg_mask_confidence_predictor.diffusion_model."),
        **with_prefix(by_text, "model.text_confidence_predictor.diffusion_model."),
        **with_prefix(shapes, f"{READER}seg_mask_cond_stage_model."),
        **with_prefix(words, f"{READER}text_cond_stage_model.transformer."),
        **with_prefix(_random(Stage(STAGES), 7), STAGE),
        **buffers(),
    }
    options = Options(image_size=32, vocabulary=_vocabulary(tmp_path / "vocab.txt", 40))
    convert(None, [_saved(state, tmp_path / "codiff.ckpt")], tmp_path / "out", options)
    model = checkpoint.load(tmp_path / "out")
    assert isinstance(model, Collaborative)
    labels, one_hot = _masks()
    (zt, t), ids = _noisy(), _text_ids()
    with torch.no_grad():
        said, read = shapes(one_hot), words(ids)
        influence = torch.cat([by_mask(zt, t, said), by_text(zt, t, read)], dim=1).softmax(dim=1)
        expected = influence[:, :1] * mask(zt, t, said) + influence[:, 1:] * text(zt, t, read)
    _close(_predicted(model, _conditions(labels, ids), zt, t), expected)


def _styled() -> tuple[UNet, StyleEncoder, State]:
    styles = _random(StyleEncoder(base=2, downs=4, ups=3, width=8), 2)
    unet = _random(UNet(**SMALL, context=24, spade=16), 1)
    raw = with_prefix(unet, UNET)
    state = {**raw, **moving_average(raw), **with_prefix(styles, READER), **buffers()}
    unet.load_state_dict({name: 0.9 * value for name, value in unet.state_dict().items()})
    return unet, styles, state


def test_sca_dm_predicts_as_published(tmp_path: Path) -> None:
    unet, styles, state = _styled()
    state |= with_prefix(_random(Stage(STAGES, codes=64), 3), STAGE)
    convert(None, [_saved(state, tmp_path / "last.ckpt")], tmp_path / "out", OPTIONS)
    model = checkpoint.load(tmp_path / "out")
    assert isinstance(model, SCADM)
    labels, one_hot = _masks()
    zt, t = _noisy()
    pictures = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
    # The picture's own style for every class, without a second reference.
    reference = torch.stack([torch.cat([pictures, labels[:, None]], dim=1)] * 2, dim=1)
    weights = torch.stack([torch.ones(2, CLASSES), torch.zeros(2, CLASSES)], dim=1)
    present = {"style": torch.ones(2, dtype=torch.bool)}
    given = _conditions(labels, style=reference, style_weights=weights, present=present)
    with torch.no_grad():
        expected = unet(zt, t, styles(pictures / 127.5 - 1, one_hot), one_hot)
    _close(_predicted(model, given, zt, t), expected)
    with torch.no_grad():  # no mask at all: zeros in SPADE, zeros as styles, and all classes alike
        nothing = unet(zt, t, torch.zeros(2, CLASSES, 24), torch.zeros_like(one_hot))
    _close(_predicted(model, model.null(2), zt, t), nothing)


def test_a_model_without_its_first_stage_says_which_file_it_needs(tmp_path: Path) -> None:
    _, _, state = _styled()
    last = _saved(state, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"no first stage in it: give its VQ-f4 file as well"):
        convert(None, [last], tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()
    vq = _saved(_random(Stage(STAGES, codes=64), 3).state_dict(), tmp_path / "vq.ckpt")
    assert convert(None, [last, vq], tmp_path / "out", OPTIONS).problems == []
    assert isinstance(checkpoint.load(tmp_path / "out"), SCADM)


# --- strictness ---------------------------------------------------------------------------------------------


def _mask_expert() -> State:
    unet, reader = UNet(**SMALL, context=64, heads=32), MaskTokens(32, 64)
    parts = (with_prefix(unet, UNET), with_prefix(reader, READER), with_prefix(Stage(STAGES), STAGE), buffers())
    return {name: value for part in parts for name, value in part.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop(f"{UNET}middle_block.1.proj_in.bias"), "missing: unet: mid_block.attentions.0.proj_in.bias"),
        (lambda s: s.update({f"{UNET}extra.weight": torch.zeros(1)}), "no use that we know: model.diffusion"),
        (lambda s: s.update({f"{READER}linear.bias": torch.zeros(65)}), r"linear.bias \[65\], not \[64\]"),
        (lambda s: s.update({f"{READER}linear.bias": torch.zeros(64, dtype=torch.int64)}), "linear.bias is int64"),
        (lambda s: s[f"{READER}linear.bias"].fill_(float("nan")), "linear.bias is not finite"),
        (lambda s: s.pop(f"{UNET}time_embed.0.weight"), "missing: unet: time_embedding.linear_1.weight"),
    ],
)
def test_what_does_not_fit_is_an_error_before_anything_is_written(change: Any, said: str, tmp_path: Path) -> None:
    state = _mask_expert()
    change(state)
    with pytest.raises(InputError, match=said):
        convert("codiff-mask", [_saved(state, tmp_path / "m.ckpt")], tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_another_family_is_named(tmp_path: Path) -> None:
    file = _saved(_mask_expert(), tmp_path / "m.ckpt")
    with pytest.raises(InputError, match="by its names it is 'codiff-mask'"):
        convert("codiff-text", [file], tmp_path / "out", OPTIONS)
    with pytest.raises(ConfigError, match="is no family"):
        convert("codiff-masks", [file], tmp_path / "out", OPTIONS)
    with pytest.raises(ConfigError, match="of no family that we know"):
        inspect([_saved({"a": torch.zeros(1)}, tmp_path / "a.ckpt")])


def test_a_vocabulary_of_another_size_is_an_error(tmp_path: Path) -> None:
    unet, reader = UNet(**SMALL, context=64, heads=32), TextTransformer(40, 64, 1, length=16)
    parts = (with_prefix(unet, UNET), with_prefix(reader, f"{READER}transformer."), with_prefix(Stage(STAGES), STAGE))
    file = _saved({name: value for part in parts for name, value in part.items()}, tmp_path / "t.ckpt")
    options = Options(image_size=32, vocabulary=_vocabulary(tmp_path / "vocab.txt", 41))
    with pytest.raises(ConfigError, match="41 words, the text encoder 40"):
        convert(None, [file], tmp_path / "out", options)
    with pytest.raises(ConfigError, match="name one with --vocabulary"):
        convert(None, [file], tmp_path / "out", Options(image_size=32, vocabulary=str(tmp_path / "nothing")))


def test_weights_say_where_they_come_from(tmp_path: Path) -> None:
    from safetensors import safe_open

    file = _saved(_mask_expert(), tmp_path / "m.ckpt")
    account = convert(None, [file], tmp_path / "out", OPTIONS)
    with safe_open(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors", framework="pt") as written:
        said = written.metadata()
    assert said["source_sha256"] == account.files[0].sha256
    assert said["mapping"] == "codiff-mask 1"
    assert str(tmp_path) not in json.dumps(said) + (tmp_path / "out" / "raygen.json").read_text()


def test_a_file_inside_of_the_folder_is_never_replaced_by_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "raygen.json").write_text("{}")
    file = _saved(_mask_expert(), tmp_path / "out" / "m.ckpt")
    with pytest.raises(ConfigError, match="lies inside of"):
        convert(None, [file], tmp_path / "out", OPTIONS)
    assert file.is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["auto", "FILE", "s3://bucket/model"], "'s3://bucket/model' is a URL; this writes to a local folder only"),
        (["auto", "s3://bucket/m.ckpt", "out"], "'s3://bucket/m.ckpt' is a URL; this is read from a local file only"),
        (["--inspect", "s3:/bucket/m.ckpt", "FILE"], "lacks a slash"),
        (["auto", "m.ckpt", "out"], "m.ckpt: no such file"),
    ],
)
def test_an_import_is_of_local_files_into_a_local_folder(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Path` makes the folder `s3:` of a URL."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.ckpt"
    file.write_bytes(b"")
    ran = CliRunner().invoke(app, ["import", *(str(file) if word == "FILE" else word for word in words)])
    assert said in str(ran.exception)
    with pytest.raises(ConfigError, match="is a URL; an import writes to a local folder only"):
        convert(None, [file], "s3://bucket/model")
    assert [path.name for path in tmp_path.iterdir()] == ["file.ckpt"]


def test_an_import_in_a_submitted_job_writes_to_an_absolute_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    ran = CliRunner().invoke(app, ["import", "auto", __file__, "runs/model"])
    assert "'runs/model' is relative. A submitted Ray job runs in a temporary copy" in str(ran.exception)


# --- afterwards ---------------------------------------------------------------------------------------------


def test_an_imported_folder_generates_like_any_other(tmp_path: Path) -> None:
    unet, stage = _random(UNet(**SMALL), 1), _random(Stage(STAGES, codes=64), 2)
    state = {**with_prefix(unet, UNET), **with_prefix(stage, STAGE), **buffers()}
    file = _saved(state, tmp_path / "model.ckpt", optimizer_states=[{"state": {}}])
    ran = CliRunner().invoke(app, ["import", "ldm-celebahq", str(file), str(tmp_path / "model"), "--image-size", "32"])
    assert ran.exit_code == 0, ran.output
    assert "every tensor accounted for" in ran.output
    make({"kind": "plan", "planning": {"kind": "unconditional", "count": 6}, "out": f"{tmp_path}/rows"}).run(
        lambda _: None
    )
    what = {
        "conditions": f"{tmp_path}/rows",
        "checkpoint": f"{tmp_path}/model",
        "batch": 4,
        "sampler": {"name": "ddim", "steps": 10, "spacing": "leading"},
    }
    make({"kind": "generate", **what, "out": f"{tmp_path}/samples"}).run(lambda _: None)
    found = verify(RunStore(f"{tmp_path}/samples", 0))
    assert found.ok
    assert (found.rows["samples"], found.pictures, found.quarantined) == (6, 6, 0)


@torch.no_grad()
def test_the_released_sampler_takes_the_published_steps(tmp_path: Path) -> None:
    """t = 1, 21, .., 981 for 50 steps, and the last step ends at abar of 0 rather than at 1."""
    abar = (1 - torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    config = SamplerConfig(name="ddim", steps=50, spacing="leading")
    schedule = NoiseSchedule()
    sampler = build_sampler(schedule, config)
    times = list(range(1, 1000, 20))[::-1]
    assert list(sampler.timesteps) == times
    trajectory = sampler.start()
    z = ours = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in times:
        eps = torch.tanh(z)
        before = abar[t - 20] if t > 1 else abar[0]
        x0 = (z - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
        z = before.sqrt() * x0 + (1 - before).sqrt() * eps
        ours = trajectory.advance(ours, torch.tanh(ours))
    _close(ours, z)


def test_a_conversion_takes_little_memory_of_its_own(tmp_path: Path) -> None:
    """Less than 1.3 times its largest part, although the file is three times as large."""
    unet = UNet((192, 384), (False, True))
    raw = with_prefix(unet, UNET)
    state = {**raw, **moving_average(raw), **with_prefix(Stage(STAGES, codes=64), STAGE), **buffers()}
    file = _saved(state, tmp_path / "model.ckpt", optimizer_states=[[p.detach().clone() for p in unet.parameters()]])
    script = """
import sys, threading, time
from raygen.convert.convert import convert
from raygen.convert.parts import Options
def anonymous():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('RssAnon'))
convert('vq-f4', [sys.argv[3]], sys.argv[2] + '-first', Options(image_size=32))  # what the first conversion loads
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.005)
watcher = threading.Thread(target=watch)
watcher.start()
convert('ldm-celebahq', [sys.argv[1]], sys.argv[2], Options(image_size=32))
done = True
watcher.join()
print((peak - before) * 1024)
"""
    first = _saved(Stage(STAGES, codes=64).state_dict(), tmp_path / "vq.ckpt")
    run = subprocess.run(
        [sys.executable, "-c", script, str(file), str(tmp_path / "out"), str(first)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    largest = 4 * sum(parameter.numel() for parameter in unet.parameters())
    assert file.stat().st_size > 2.9 * largest
    assert int(run.stdout) < 1.3 * largest
