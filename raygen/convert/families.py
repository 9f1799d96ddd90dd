"""Families of published checkpoints: the model that each becomes, and the source of every tensor.

A new family is a function that drafts it and its line in `FAMILIES`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from torch import nn

from raygen.convert.infer_config import Shapes, below, style_config, text_config, unet_fields
from raygen.convert.key_maps import (
    branch_names,
    clip_names,
    mask_names,
    same_names,
    style_names,
    text_names,
    unet_names,
)
from raygen.convert.parts import (
    LOGITS,
    LOSS,
    READER,
    SCHEDULE,
    STAGE,
    UNET,
    Draft,
    Options,
    Part,
    Read,
    schedule_of,
    stage_part,
    unet_part,
    vocabulary_of,
    which_weights,
)
from raygen.core.errors import InputError
from raygen.extractors.face_parsers import BiSeNet, ParseNet
from raygen.models.autoencoder import FirstStage
from raygen.models.collaborative import Collaborative
from raygen.models.config.collaborative import CollaborativeConfig
from raygen.models.config.controlnet import ControlNetConfig
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.scadm import SCADMConfig
from raygen.models.config.text import PretrainedTextConfig
from raygen.models.controlnet import ControlNetLDM
from raygen.models.ldm import LDM
from raygen.models.scadm import SCADM
from raygen.models.text import FrozenText

__all__ = ["FAMILIES", "PublishedFamily", "guess"]


class PublishedFamily(NamedTuple):
    """How a family is recognised and drafted."""

    text: str
    #: Whether a file with these names is of the family; called in the order of the table.
    known_by: Callable[[Shapes], bool]
    #: (names and shapes, how a tensor is read, options) -> the draft.
    draft: Callable[[Shapes, Read, Options], Draft]


# --- models -------------------------------------------------------------------------------------------------


def _ldm(shapes: Shapes, read: Read, options: Options) -> Draft:
    """Unconditional latent diffusion; heads of 32 channels."""
    stage, first = stage_part(shapes, options, 256, 1.0, STAGE)
    fields = unet_fields(below(shapes, UNET))
    if fields.pop("token_width"):
        raise InputError("its UNet reads tokens: not an unconditional model", reason="weights")
    config = LDMConfig(latent=stage.latent_shape, head_dim=32, noise=schedule_of(shapes, read), **fields)
    model = LDM(config, stage)
    unet, left = unet_part(shapes, config, model.unet, which_weights(shapes, options, "ema"))
    return Draft(model, [first, unet], [*left, *SCHEDULE, *LOSS])


def _expert_config(shapes: Shapes, noise: NoiseSchedule, stage: FirstStage, **more: Any) -> LDMConfig:
    """The config of one of Collaborative Diffusion's UNets: 32 heads on every level."""
    fields = unet_fields(shapes)
    return LDMConfig(latent=stage.latent_shape, heads=32, head_dim=4, noise=noise, **fields, **more)


def _mask_fields(width: tuple[int, ...]) -> dict[str, Any]:
    side = round(width[1] ** 0.5)
    return {
        "modalities": ("mask",),
        "required": ("mask",),
        "mask_path": "tokens",
        "mask_side": side,
        "mask_class_embedding": False,
    }


def _scale(shapes: Shapes) -> float:
    """The scale of Collaborative Diffusion's latents: 0.058 for KL-f4, 0.141 for KL-f8, which has one more level."""
    deep = any(re.search(r"(^|\.)encoder\.down\.3\.", name) for name in shapes)
    return 0.141 if deep else 0.058


def _size(shapes: Shapes) -> int:
    """Side of Collaborative Diffusion's pictures."""
    return 512 if _scale(shapes) == 0.141 else 256


def _codiff_mask(shapes: Shapes, read: Read, options: Options) -> Draft:
    stage, first = stage_part(shapes, options, _size(shapes), _scale(shapes), STAGE)
    linear = shapes[f"{READER}linear.weight"]
    config = _expert_config(below(shapes, UNET), schedule_of(shapes, read), stage, **_mask_fields(linear))
    model = LDM(config, stage)
    unet, left = unet_part(shapes, config, model.unet, which_weights(shapes, options, "raw"))
    assert model.mask_encoder is not None
    reader = Part("mask_encoder", model.mask_encoder, READER, mask_names)
    return Draft(model, [first, unet, reader], [*left, *SCHEDULE, *LOSS])


def _codiff_text(shapes: Shapes, read: Read, options: Options) -> Draft:
    stage, first = stage_part(shapes, options, _size(shapes), _scale(shapes), STAGE)
    prefix = f"{READER}transformer."
    text = text_config(below(shapes, prefix), 8, options.vocabulary or "bert-base-uncased")
    more = {"modalities": ("text",), "required": ("text",), "text": text}
    config = _expert_config(below(shapes, UNET), schedule_of(shapes, read), stage, **more)
    model = LDM(config, stage, tokenizer=vocabulary_of(text, text.vocabulary_size, options))
    unet, left = unet_part(shapes, config, model.unet, which_weights(shapes, options, "raw"))
    assert model.text_encoder is not None
    reader = Part("text_encoder", model.text_encoder, prefix, text_names)
    left = [*left, (LOGITS, "an output layer that nothing reads")]
    return Draft(model, [first, unet, reader], [*left, *SCHEDULE, *LOSS])


def _codiff(shapes: Shapes, read: Read, options: Options) -> Draft:
    """Both experts and their dynamic diffusers, all in one file."""
    stage, first = stage_part(shapes, options, _size(shapes), _scale(shapes), STAGE)
    noise = schedule_of(shapes, read)
    prefixes = {name: f"model.{long}_" for name, long in (("mask", "seg_mask"), ("text", "text"))}
    readers = {"mask": f"{READER}seg_mask_cond_stage_model.", "text": f"{READER}text_cond_stage_model.transformer."}
    unets = {name: below(shapes, f"{prefix}unet.diffusion_model.") for name, prefix in prefixes.items()}
    text = text_config(below(shapes, readers["text"]), 8, options.vocabulary or "bert-base-uncased")
    masks = _mask_fields(below(shapes, readers["mask"])["linear.weight"])
    texts = {"modalities": ("text",), "required": ("text",), "text": text}
    configs = {
        "mask": _expert_config(unets["mask"], noise, stage, **masks),
        "text": _expert_config(unets["text"], noise, stage, **texts),
    }
    experts = {
        "mask": LDM(configs["mask"], stage),
        "text": LDM(configs["text"], stage, tokenizer=vocabulary_of(text, text.vocabulary_size, options)),
    }
    places = {name: f"{prefix}confidence_predictor.diffusion_model." for name, prefix in prefixes.items()}
    sizes = {name: unet_fields(below(shapes, place))["channels"] for name, place in places.items()}
    if sizes["mask"] != sizes["text"]:
        raise InputError(f"dynamic diffusers of two sizes: {sizes}", reason="weights")
    folders = {name: f"experts/{name}" for name in experts}
    model = Collaborative(CollaborativeConfig(experts=folders, channels=sizes["mask"], nulls=()), experts)
    parts = [first]
    for name, expert in experts.items():
        unet = f"{prefixes[name]}unet.diffusion_model."
        parts.append(Part(f"experts/{name}/unet", expert.unet, unet, unet_names(configs[name])))
        diffuser = model.diffuser(name)
        parts.append(Part(f"diffusers/{name}", diffuser.unet, places[name], unet_names(configs[name])))
        own = expert.mask_encoder if name == "mask" else expert.text_encoder
        assert own is not None
        rename = mask_names if name == "mask" else text_names
        parts.append(Part(f"experts/{name}/{name}_encoder", own, readers[name], rename))
    left = [
        (LOGITS, "an output layer that nothing reads"),
        (r"model_ema\..+", "the moving average, which the published configuration does not use"),
    ]
    return Draft(model, parts, [*left, *SCHEDULE, *LOSS])


def _scadm(shapes: Shapes, read: Read, options: Options) -> Draft:
    """SCA-DM as released; heads of 32 channels."""
    stage, first = stage_part(shapes, options, 256, 1.0, STAGE)
    inner = below(shapes, UNET)
    fields = unet_fields(inner)
    styles = style_config(below(shapes, READER))
    if fields.pop("token_width") != styles.token_width:
        raise InputError(f"styles of {styles.token_width} numbers, and a UNet that reads others", reason="weights")
    hidden = inner["middle_block.0.in_norm.mlp_shared.0.weight"][0]
    config = SCADMConfig(
        latent=stage.latent_shape,
        head_dim=32,
        spade_hidden=hidden,
        gating="hard",
        style=styles,
        noise=schedule_of(shapes, read),
        **fields,
    )
    model = SCADM(config, stage)
    unet, left = unet_part(shapes, config, model.unet, which_weights(shapes, options, "ema"))
    assert model.style_encoder is not None
    reader = Part("style_encoder", model.style_encoder, READER, style_names)
    unused = (
        r"(model\.diffusion_model\.label_emb\.weight|model_ema\.diffusion_modellabel_embweight)",
        "an embedding that nothing reads",
    )
    return Draft(model, [first, unet, reader], [unused, *left, *SCHEDULE, *LOSS])


def _stable(shapes: Shapes, read: Read, options: Options) -> Draft:
    """Stable Diffusion 1: 8 heads on every level, CLIP's text model."""
    stage, first = stage_part(shapes, options, 512, 0.18215, STAGE)
    prefix = f"{READER}transformer."
    clip = _clip(below(shapes, f"{prefix}text_model."))
    name = options.vocabulary or "openai/clip-vit-large-patch14"
    text = PretrainedTextConfig(name=name, length=clip.network.config.max_position_embeddings)
    fields = unet_fields(below(shapes, UNET))
    config = LDMConfig(
        latent=stage.latent_shape,
        heads=8,
        head_dim=4,
        noise=schedule_of(shapes, read),
        modalities=("text",),
        text=text,
        **fields,
    )
    model = LDM(config, stage, tokenizer=vocabulary_of(text, clip.network.config.vocab_size, options), frozen_text=clip)
    unet, left = unet_part(shapes, config, model.unet, which_weights(shapes, options, "ema"))
    reader = Part("text_encoder", clip, prefix, clip_names)
    places = (r".+\.position_ids", "the numbers from 0 to 76")
    return Draft(model, [first, unet, reader], [places, *left, *SCHEDULE, *LOSS])


def _clip(shapes: Shapes) -> FrozenText:
    """CLIP's text model with the sizes of `shapes`; heads of 64 channels."""
    from transformers import CLIPTextConfig, CLIPTextModel

    words, width = shapes["embeddings.token_embedding.weight"]
    inner, _ = shapes["encoder.layers.0.mlp.fc1.weight"]
    layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}
    length, _ = shapes["embeddings.position_embedding.weight"]
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len(layers),
        num_attention_heads=width // 64,
        max_position_embeddings=length,
        projection_dim=width,
    )
    return FrozenText(CLIPTextModel(config))


BRANCH: Final = "control_model."


def _controlnet(shapes: Shapes, read: Read, options: Options) -> Draft:
    """A ControlNet beside the Stable Diffusion of the same file, or of a second one."""
    if f"{UNET}input_blocks.0.0.weight" not in shapes:
        raise InputError("no Stable Diffusion in it: give its file as well, after it", reason="weights")
    base = _stable(shapes, read, options)
    assert isinstance(base.model, LDM)
    channels = [shapes[f"{BRANCH}input_hint_block.{i}.weight"][0] for i in (0, 4, 8, 12)]
    config = ControlNetConfig(base=".", hint="picture", hint_channels=tuple(channels))
    model = ControlNetLDM(config, base.model)
    branch = Part("controlnet", model.branch, BRANCH, branch_names(base.model.config))
    return Draft(model, [*base.parts, branch], base.left)


def _first_stage(scale: float, size: int) -> Callable[[Shapes, Read, Options], Draft]:
    def draft(shapes: Shapes, read: Read, options: Options) -> Draft:
        stage, first = stage_part(shapes, options, size, scale, STAGE)
        kind = stage.config.stage
        if (kind == "vq") != (scale == 1.0):
            raise InputError(f"a first stage of the kind {kind!r}, not the one named", reason="weights")
        # Other models have the same names and shapes.
        note = (
            f"latents are multiplied by {scale:g}, as in Collaborative Diffusion; Stable Diffusion's factor is 0.18215"
        )
        told = kind == "vq" or options.scaling_factor is not None
        return Draft(stage, [first], [*LOSS, *SCHEDULE], [] if told else [f"{note} (--scaling-factor)"])

    return draft


def _parser(make: Callable[[], nn.Module]) -> Callable[[Shapes, Read, Options], Draft]:
    def draft(shapes: Shapes, read: Read, options: Options) -> Draft:
        module = make()
        return Draft(module, [Part("parser", module, "", same_names)])

    return draft


# --- every family -------------------------------------------------------------------------------------------


def _has(*names: str) -> Callable[[Shapes], bool]:
    return lambda shapes: all(name in shapes for name in names)


FAMILIES: Final[Mapping[str, PublishedFamily]] = {
    "codiff": PublishedFamily(
        "Collaborative Diffusion, mask and text",
        _has("model.seg_mask_confidence_predictor.diffusion_model.input_blocks.0.0.weight"),
        _codiff,
    ),
    "controlnet": PublishedFamily(
        "a ControlNet beside Stable Diffusion 1", _has(f"{BRANCH}zero_convs.0.0.weight"), _controlnet
    ),
    "sd15": PublishedFamily(
        "Stable Diffusion 1", _has(f"{READER}transformer.text_model.embeddings.token_embedding.weight"), _stable
    ),
    "sca-dm": PublishedFamily("SCA-DM", _has(f"{READER}Encoder.first_layer.0.weight"), _scadm),
    "codiff-mask": PublishedFamily(
        "Collaborative Diffusion's mask expert", _has(f"{READER}linear.weight"), _codiff_mask
    ),
    "codiff-text": PublishedFamily(
        "Collaborative Diffusion's text expert", _has(f"{READER}transformer.token_emb.weight"), _codiff_text
    ),
    "ldm-celebahq": PublishedFamily(
        "latent diffusion without conditions (FFHQ's has the same names and shapes)",
        _has(f"{UNET}input_blocks.0.0.weight", f"{UNET}middle_block.1.qkv.weight"),
        _ldm,
    ),
    "ldm-ffhq": PublishedFamily("latent diffusion without conditions", lambda shapes: False, _ldm),
    "vq-f4": PublishedFamily(
        "a first stage with a codebook", _has("quantize.embedding.weight"), _first_stage(1.0, 256)
    ),
    "kl-f8": PublishedFamily(
        "a first stage with a KL term, 8 times smaller",
        _has("quant_conv.weight", "encoder.down.3.block.0.conv1.weight"),
        _first_stage(0.141, 512),
    ),
    "kl-f4": PublishedFamily(
        "a first stage with a KL term, 4 times smaller",
        _has("quant_conv.weight", "encoder.down.2.block.0.conv1.weight"),
        _first_stage(0.058, 256),
    ),
    "bisenet": PublishedFamily("a face parser", _has("cp.resnet.conv1.weight"), _parser(BiSeNet)),
    "parsenet": PublishedFamily(
        "a face parser", _has("conv1.conv1.0.weight", "center.conv1.0.weight"), _parser(ParseNet)
    ),
}


def guess(shapes: Shapes) -> str | None:
    """The family of a file by its names; None where it is of none."""
    return next((name for name, family in FAMILIES.items() if family.known_by(shapes)), None)
