"""First stages: pixels <-> the latents a diffusion model works on.

There are four kinds: `kl` (AutoencoderKL), `vq` (VQModel), `dc` (AutoencoderDC: the deep compression autoencoder of
arXiv:2410.10733, deterministic, with shortcuts around the bottleneck that let a small one learn in minutes), `pixel`
(identity). Each has an optional space-to-depth step in front and scales its latents to unit standard deviation.

`moments` are what can be cached: mean and log-variance (kl), latents before quantisation (vq), latents (dc),
pixels. Scaling follows diffusers: z = (latent - mean) * scaling_factor / std, in the model's own config where that
has a place for all three, in the config for `dc`.
"""

from collections.abc import Mapping
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, AutoencoderKL, Transformer2DModel, VQModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from raygen.core.errors import ConfigError
from raygen.core.precision import full_precision
from raygen.models.config.autoencoder import AutoencoderConfig

__all__ = ["FirstStage", "require_same_stage", "same_stage", "silence_residuals"]


#: Log-variances outside this range are clipped before they are used, as AutoencoderKL's own posterior does.
LOGVAR_RANGE = (-30.0, 20.0)
#: Log-variance of the posterior before training.
START_LOGVAR = -6.0


class FirstStage(nn.Module):
    """A first stage with one interface. `net` is the diffusers model, None for `pixel`."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: AutoencoderConfig, net: Any = None) -> None:
        super().__init__()
        self.config = config
        self.net = _new_network(config) if net is None and config.stage != "pixel" else net
        self.register_buffer("mean", torch.zeros(1, config.latent_shape[0], 1, 1), persistent=False)
        self.register_buffer("scale", torch.ones(1, config.latent_shape[0], 1, 1), persistent=False)
        self._read_scale()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent."""
        return self.config.latent_shape

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent position."""
        return self.config.factor

    @property
    def last_layer(self) -> Tensor:
        """Weights of the decoder's last convolution, where reconstruction and adversarial gradients are compared."""
        weight: Tensor = self.net.decoder.conv_out.weight
        return weight

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in -1..1 -> moments float32 [B, C or 2C, h, w]."""
        x = F.pixel_unshuffle(pixels, self.config.patch)  # [B, 3p², H/p, W/p]
        if self.net is None:
            return x
        x = x.to(self.net.dtype)
        encoded = self.net.encode(x, return_dict=False)[0]
        return (encoded.parameters if self.config.stage == "kl" else encoded).float()  # type: ignore[no-any-return]

    def sample(self, moments: Tensor, noise: Tensor) -> Tensor:
        """A latent z of the posterior; `noise` [B, C, h, w] is used by `kl` only."""
        if self.config.stage != "kl":
            return self._scaled(moments)
        mean, logvar = moments.float().chunk(2, dim=1)
        return self._scaled(mean + (0.5 * logvar.clamp(*LOGVAR_RANGE)).exp() * noise)

    def mode(self, moments: Tensor) -> Tensor:
        """The most likely latent z [B, C, h, w]."""
        return self._scaled(moments.float().chunk(2, dim=1)[0] if self.config.stage == "kl" else moments)

    def quantise(self, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """vq only: latents z of the nearest codes (gradients pass straight through), codebook loss, code indices."""
        quantised, loss, (_, _, codes) = self._look_up(moments)
        return self._scaled(quantised), loss, codes

    def _look_up(self, moments: Tensor) -> Any:
        """What the quantiser of a vq stage gives, in whole float32 whatever the precision of the network.

        Codes lie close together: in bfloat16 a fifth of them would be others.
        """
        with full_precision():
            return self.net.quantize(moments.float())

    def decode(self, z: Tensor, *, quantised: bool = False) -> Tensor:
        """Latent z [B, C, h, w] -> pixels float32 [B, 3, H, W], not clipped. `quantised`: z is of `quantise`."""
        raw = z.float() / self.scale + self.mean
        if self.net is None:
            return F.pixel_shuffle(raw, self.config.patch)
        if self.config.stage == "vq" and not quantised:
            raw = self._look_up(raw)[0]
        options = {"force_not_quantize": True} if self.config.stage == "vq" else {}
        x = self.net.decode(raw.to(self.net.dtype), return_dict=False, **options)[0]
        return F.pixel_shuffle(x, self.config.patch).float()

    def calibrate(self, moments: Tensor) -> None:
        """Set mean and scale so that sampled latents have mean 0 and standard deviation 1.

        `moments` of some thousands of pictures. kl: a mean and a deviation a channel (`latents_mean`,
        `latents_std`); dc: the same, in the config; vq: one `scaling_factor`; pixel: nothing, pictures are left as
        they are.
        """
        if self.net is None:
            return
        if self.config.stage == "dc":
            mean, std = moments.double().mean(dim=(0, 2, 3)), moments.double().std(dim=(0, 2, 3))
            statistics = {"latents_mean": tuple(mean.tolist()), "latents_std": tuple(std.tolist())}
            self.config = self.config.model_copy(update=statistics)
        elif self.config.stage == "vq":
            self.net.register_to_config(scaling_factor=1 / float(moments.float().std()))
        else:
            mean, logvar = moments.double().chunk(2, dim=1)
            variance = mean.var(dim=(0, 2, 3)) + logvar.clamp(*LOGVAR_RANGE).exp().mean(dim=(0, 2, 3))
            self.net.register_to_config(
                scaling_factor=1.0,
                shift_factor=None,
                latents_mean=[float(v) for v in mean.mean(dim=(0, 2, 3))],
                latents_std=[float(v) for v in variance.sqrt()],
            )
        self._read_scale()

    def _scaled(self, raw: Tensor) -> Tensor:
        return (raw.float() - self.mean) * self.scale

    def _read_scale(self) -> None:
        """Fill the buffers from the config of the diffusers model; for `dc`, from our own."""
        if self.net is None:
            return
        config: Mapping[str, Any] = self.config.model_dump() if self.config.stage == "dc" else self.net.config
        factor = float(config.get("scaling_factor") or 1.0)
        mean = config.get("latents_mean") or [float(config.get("shift_factor") or 0.0)]
        std = config.get("latents_std") or [1.0]
        self.mean.copy_(torch.tensor(mean).view(1, -1, 1, 1))
        self.scale.copy_(factor / torch.tensor(std).view(1, -1, 1, 1))

    def _apply(self, fn: Any, recurse: bool = True) -> "FirstStage":
        """Keep the scale and the codes in float32 when the weights go to half precision."""
        codes = self.net.quantize.embedding if self.config.stage == "vq" else None
        exact = None if codes is None else codes.weight.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if codes is not None and exact is not None and codes.weight.dtype != torch.float32:
            codes.weight.data = exact.to(codes.weight.device, torch.float32)
        self.mean, self.scale = self.mean.float(), self.scale.float()
        self._read_scale()
        return self


def same_stage(a: FirstStage, b: FirstStage) -> bool:
    """Whether two first stages make the same latents: config, scale and weights, compared as float16."""
    if a is b:
        return True
    if a.config != b.config or not (torch.equal(a.mean, b.mean) and torch.equal(a.scale, b.scale)):
        return False
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(x[k].shape == y[k].shape and torch.equal(x[k].half(), y[k].half()) for k in x)


def require_same_stage(first_stage: FirstStage, model_stage: FirstStage, model: str) -> None:
    """`ConfigError` where `model` was trained on another first stage than the one given."""
    if not same_stage(model_stage, first_stage):
        raise ConfigError(f"{model} has another first stage than the one of this training")


def _new_network(config: AutoencoderConfig) -> Any:
    levels = len(config.channels)
    if config.stage == "dc":
        layers, scales = (config.layers_per_block,) * levels, ((),) * levels
        return AutoencoderDC(
            in_channels=3 * config.patch**2,
            latent_channels=config.latent_channels,
            encoder_block_out_channels=config.channels,
            decoder_block_out_channels=config.channels,
            encoder_layers_per_block=layers,
            decoder_layers_per_block=layers,
            encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales,
        )
    shared: dict[str, Any] = {
        "in_channels": 3 * config.patch**2,
        "out_channels": 3 * config.patch**2,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": config.channels,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": gcd(32, *config.channels),
        "sample_size": config.image_size // config.patch,
        "scaling_factor": 1.0,
        "mid_block_add_attention": config.mid_attention,
    }
    if config.stage == "vq":
        return silence_residuals(VQModel(**shared, num_vq_embeddings=config.codes, vq_embed_dim=config.latent_channels))
    net = silence_residuals(AutoencoderKL(**shared))
    with torch.no_grad():
        # A posterior as wide as the prior would hide the signal of an untrained encoder.
        net.quant_conv.weight[config.latent_channels :] *= 0.1
        net.quant_conv.bias[config.latent_channels :] = START_LOGVAR
    return net


def silence_residuals(net: Any) -> Any:
    """Zero the last layer of every residual branch, so that training starts from the identity.

    Latent diffusion does so in its UNet; diffusers does not. Small first stages learn several times faster too.
    """
    for module in net.modules():
        last = {ResnetBlock2D: "conv2", Transformer2DModel: "proj_out"}.get(type(module))
        layers = [getattr(module, last)] if last else []
        if isinstance(module, Attention) and module.residual_connection:
            layers.append(module.to_out[0])
        for layer in layers:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return net
