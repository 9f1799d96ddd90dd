"""The published networks as papers and key lists describe them, under the published names: what an import must equal.

Small and slow on purpose: plain torch, one class a block, loops where the text says "for each class". Nothing here is
shared with the package.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 19


# --- UNet of latent diffusion -------------------------------------------------------------------------------


class ResBlock(nn.Module):
    """GN, SiLU, 3x3; plus the time; GN, SiLU, 3x3; plus what went in."""

    def __init__(self, inside: int, out: int, time: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inside), nn.SiLU(), nn.Conv2d(inside, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inside == out else nn.Conv2d(inside, out, 1)

    def forward(self, x: Tensor, emb: Tensor, **_: Any) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class SPADE(nn.Module):
    """Group norm without affine; (1 + gamma) and beta of the mask at the size of the features."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mlp_shared = nn.Sequential(nn.Conv2d(CLASSES, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        shared = self.mlp_shared(F.interpolate(mask, size=x.shape[2:], mode="nearest"))
        return F.group_norm(x, 32, eps=1e-5) * (1 + self.mlp_gamma(shared)) + self.mlp_beta(shared)


class SPADEResBlock(nn.Module):
    """The residual block with SPADE for both norms; its layers have other numbers, because the norms are outside."""

    def __init__(self, inside: int, out: int, time: int, hidden: int) -> None:
        super().__init__()
        self.in_norm = SPADE(inside, hidden)
        self.in_layers = nn.Sequential(nn.SiLU(), nn.Conv2d(inside, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, out))
        self.out_norm = SPADE(out, hidden)
        self.out_layers = nn.Sequential(nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if inside == out else nn.Conv2d(inside, out, 1)

    def forward(self, x: Tensor, emb: Tensor, mask: Tensor, **_: Any) -> Tensor:
        h = self.in_layers(self.in_norm(x, mask)) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(self.out_norm(h, mask))


class AttentionBlock(nn.Module):
    """Self-attention; heads are split first, and each head's rows are its query, its key and its value."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        b, c, h, w = x.shape
        flat = x.reshape(b, c, h * w)
        rows = self.qkv(self.norm(flat)).reshape(b * self.heads, 3 * c // self.heads, h * w)
        q, k, v = rows.chunk(3, dim=1)
        weight = (torch.einsum("bct,bcs->bts", q, k) / math.sqrt(c // self.heads)).softmax(dim=-1)
        mixed = torch.einsum("bts,bcs->bct", weight, v).reshape(b, c, h * w)
        return (flat + self.proj_out(mixed)).reshape(b, c, h, w)


class CrossAttention(nn.Module):
    """Queries of the pixels, keys and values of the context; gated by class where a mask is given."""

    def __init__(self, width: int, context: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context, inner, bias=False)
        self.to_v = nn.Linear(context, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        b, n, _ = x.shape
        q, k, v = (
            y.reshape(b, y.shape[1], self.heads, -1) for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        scores = torch.einsum("bnhd,bkhd->bhnk", q, k) * q.shape[-1] ** -0.5
        if mask is not None:
            side = math.isqrt(n)
            small = F.interpolate(mask, size=(side, side), mode="nearest").reshape(b, CLASSES, n)
            for i in range(CLASSES):  # a score of another class's pixel becomes 0, and what is 0 is left out
                scores[..., i] = scores[..., i] * small[:, i, None]
            scores = torch.where(scores == 0, torch.full_like(scores, -torch.finfo(scores.dtype).max), scores)
        mixed = torch.einsum("bhnk,bkhd->bnhd", scores.softmax(dim=-1), v).reshape(b, n, -1)
        return self.to_out(mixed)


class GEGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, GEGLU, each behind a layer norm and added."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(width, width, heads, width)
        self.ff = nn.Module()
        self.ff.net = nn.Sequential(GEGLU(width, 4 * width), nn.Dropout(0.0), nn.Linear(4 * width, width))
        self.attn2 = CrossAttention(width, context, heads, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor, gate: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context, gate)
        return x + self.ff.net(self.norm3(x))


class SpatialTransformer(nn.Module):
    """GN (1e-6), 1x1, a transformer block over the pixels, 1x1, added."""

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context, heads)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor, gate: Tensor | None = None, **_: Any) -> Tensor:
        b, c, h, w = x.shape
        y = self.proj_in(self.norm(x)).reshape(b, c, h * w).transpose(1, 2)
        y = self.transformer_blocks[0](y, context, gate)
        return x + self.proj_out(y.transpose(1, 2).reshape(b, c, h, w))


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class UNet(nn.Module):
    """`context` 0: attention blocks without context; `spade`: hidden channels of SPADE in middle and decoder."""

    def __init__(
        self,
        channels: tuple[int, ...],
        attention: tuple[bool, ...],
        *,
        context: int = 0,
        heads: int = 0,
        head_dim: int = 32,
        layers: int = 2,
        latent: int = 3,
        out: int = 3,
        spade: int = 0,
    ) -> None:
        super().__init__()
        base, time = channels[0], 4 * channels[0]
        self.time_embed = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time))
        if spade:
            self.label_emb = nn.Embedding(CLASSES, time)

        def looks(c: int) -> nn.Module:
            return SpatialTransformer(c, context, heads or c // head_dim) if context else AttentionBlock(c, head_dim)

        def late(a: int, b: int) -> nn.Module:
            return SPADEResBlock(a, b, time, spade) if spade else ResBlock(a, b, time)

        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(latent, base, 3, padding=1)])])
        skips, now = [base], base
        for level, c in enumerate(channels):
            for _ in range(layers):
                block = [ResBlock(now, c, time)] + ([looks(c)] if attention[level] else [])
                self.input_blocks.append(nn.ModuleList(block))
                now = c
                skips.append(c)
            if level + 1 < len(channels):
                self.input_blocks.append(nn.ModuleList([Down(c)]))
                skips.append(c)
        self.middle_block = nn.ModuleList([late(now, now), looks(now), late(now, now)])
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(channels))):
            c = channels[level]
            for i in range(layers + 1):
                block = [late(now + skips.pop(), c)] + ([looks(c)] if attention[level] else [])
                now = c
                if level and i == layers:
                    block.append(Up(c))
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, out, 3, padding=1))
        self.base = base

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        half = self.base // 2
        angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)[None]
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        given: dict[str, Any] = {"emb": emb, "context": context, "mask": mask, "gate": mask}
        kept = []

        def through(block: Any, x: Tensor) -> Tensor:
            for layer in block:
                x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, **given)
            return x

        for block in self.input_blocks:
            x = through(block, x)
            kept.append(x)
        x = through(self.middle_block, x)
        for block in self.output_blocks:
            x = through(block, torch.cat([x, kept.pop()], dim=1))
        return self.out(x)


# --- first stages -------------------------------------------------------------------------------------------


class StageBlock(nn.Module):
    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, inside, eps=1e-6), nn.Conv2d(inside, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, out, eps=1e-6), nn.Conv2d(out, out, 3, padding=1)
        if inside != out:
            self.nin_shortcut = nn.Conv2d(inside, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class StageAttention(nn.Module):
    """One head over all channels."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, c, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = (layer(y).reshape(b, c, h * w) for layer in (self.q, self.k, self.v))
        weight = (torch.einsum("bci,bcj->bij", q, k) * c**-0.5).softmax(dim=-1)
        return x + self.proj_out(torch.einsum("bij,bcj->bci", weight, v).reshape(b, c, h, w))


def _middle(c: int) -> nn.Module:
    made = nn.Module()
    made.block_1, made.attn_1, made.block_2 = StageBlock(c, c), StageAttention(c), StageBlock(c, c)
    return made


class Encoder(nn.Module):
    def __init__(self, channels: tuple[int, ...], layers: int, out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.down, now = nn.ModuleList(), channels[0]
        for i, c in enumerate(channels):
            level = nn.Module()
            level.block = nn.ModuleList(StageBlock(now if n == 0 else c, c) for n in range(layers))
            now = c
            if i + 1 < len(channels):
                level.downsample = nn.Module()
                level.downsample.conv = nn.Conv2d(c, c, 3, stride=2)
            self.down.append(level)
        self.mid = _middle(now)
        self.norm_out, self.conv_out = nn.GroupNorm(32, now, eps=1e-6), nn.Conv2d(now, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                x = block(x)
            if hasattr(level, "downsample"):
                x = level.downsample.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Its levels are stored from the finest to the coarsest, and run the other way."""

    def __init__(self, channels: tuple[int, ...], layers: int, latent: int) -> None:
        super().__init__()
        now = channels[-1]
        self.conv_in = nn.Conv2d(latent, now, 3, padding=1)
        self.mid = _middle(now)
        levels = []
        for i, c in reversed(list(enumerate(channels))):
            level = nn.Module()
            level.block = nn.ModuleList(StageBlock(now if n == 0 else c, c) for n in range(layers + 1))
            now = c
            if i:
                level.upsample = nn.Module()
                level.upsample.conv = nn.Conv2d(c, c, 3, padding=1)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = nn.GroupNorm(32, now, eps=1e-6), nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        for level in reversed(self.up):
            for block in level.block:
                x = block(x)
            if hasattr(level, "upsample"):
                x = level.upsample.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class Stage(nn.Module):
    """`codes` 0: moments of a KL stage; else a codebook that the decoder looks the nearest code up in."""

    def __init__(self, channels: tuple[int, ...], *, layers: int = 2, latent: int = 3, codes: int = 0) -> None:
        super().__init__()
        double = latent if codes else 2 * latent
        self.encoder, self.decoder = Encoder(channels, layers, double), Decoder(channels, layers, latent)
        if codes:
            self.quantize = nn.Module()
            self.quantize.embedding = nn.Embedding(codes, latent)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(double, double, 1), nn.Conv2d(latent, latent, 1)
        self.codes = codes

    def encode(self, pixels: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(pixels))

    def decode(self, z: Tensor) -> Tensor:
        if self.codes:
            book, flat = self.quantize.embedding.weight, z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
            z = book[torch.cdist(flat, book).argmin(dim=1)].reshape(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(z))


# --- what reads conditions ----------------------------------------------------------------------------------


class TextTransformer(nn.Module):
    """Pre-norm layers, counted through: attention and feed-forward by turns. Its output layer is never used."""

    def __init__(
        self, words: int, width: int, layers: int, *, heads: int = 8, head_dim: int = 64, length: int = 77
    ) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(words, width)
        self.pos_emb = nn.Module()
        self.pos_emb.emb = nn.Embedding(length, width)
        self.attn_layers = nn.Module()
        made = []
        for _ in range(layers):
            feed = nn.Module()
            feed.net = nn.Sequential(
                nn.Sequential(nn.Linear(width, 4 * width), nn.GELU()), nn.Dropout(0.0), nn.Linear(4 * width, width)
            )
            made.append(nn.ModuleList([nn.LayerNorm(width), _TextAttention(width, heads, head_dim)]))
            made.append(nn.ModuleList([nn.LayerNorm(width), feed]))
        self.attn_layers.layers = nn.ModuleList(made)
        self.norm = nn.LayerNorm(width)
        self.to_logits = nn.Linear(width, words)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_emb(ids) + self.pos_emb.emb(torch.arange(ids.shape[1]))
        for i, (norm, layer) in enumerate(self.attn_layers.layers):
            x = x + (layer.net(norm(x)) if i % 2 else layer(norm(x)))
        return self.norm(x)


class _TextAttention(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.to_out = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).reshape(b, n, self.heads, -1) for layer in (self.to_q, self.to_k, self.to_v))
        weight = (torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.to_out(torch.einsum("bhnm,bmhd->bnhd", weight, v).reshape(b, n, -1))


class MaskTokens(nn.Module):
    """The 32 x 32 shape of every class through one linear layer."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(side * side, width)

    def forward(self, one_hot: Tensor) -> Tensor:
        return self.linear(one_hot.flatten(2))


class StyleEncoder(nn.Module):
    """SCA-DM's, with the order of channels that it was released with: decoder's first, then the encoder's."""

    def __init__(self, base: int = 4, downs: int = 6, ups: int = 5, width: int = 256) -> None:
        super().__init__()
        k, sizes = CLASSES, [CLASSES * base * 2**i for i in range(downs + 1)]
        self.Encoder, self.Decoder, self.out = nn.Module(), nn.Module(), nn.Module()
        self.Encoder.first_layer = nn.Sequential(
            nn.Conv2d(3, sizes[0], 3, padding=1), nn.GroupNorm(k, sizes[0]), nn.ReLU()
        )
        for i in range(downs):
            conv = nn.Conv2d(sizes[i], sizes[i + 1], 3, stride=2, padding=1, groups=k)
            self.Encoder.add_module(f"enc_layer_{i}", nn.Sequential(conv, nn.GroupNorm(k, sizes[i + 1]), nn.ReLU()))
        for i in range(ups):
            out = sizes[downs - 1 - i]
            inside = sizes[-1] if i == 0 else 2 * sizes[downs - i]
            up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            conv = nn.Conv2d(inside, out, 3, padding=1, groups=k)
            self.Decoder.add_module(f"dec_layer_{i}", nn.Sequential(up, conv, nn.GroupNorm(k, out), nn.ReLU()))
            self.out.add_module(f"out_{i}", nn.Sequential(nn.Conv1d(out, k * width, 1, groups=k), nn.Tanh()))
        self.downs, self.ups, self.width = downs, ups, width

    def forward(self, pixels: Tensor, mask: Tensor) -> Tensor:
        features = [self.Encoder.first_layer(pixels)]
        for i in range(self.downs):
            features.append(getattr(self.Encoder, f"enc_layer_{i}")(features[-1]))
        x, styles = features[-1], []
        for i in range(self.ups):
            x = getattr(self.Decoder, f"dec_layer_{i}")(x)
            styles.append(self._style(x, mask, getattr(self.out, f"out_{i}")))
            x = torch.cat([x, features[self.downs - 1 - i]], dim=1)
        return torch.cat(styles, dim=2)

    def _style(self, x: Tensor, mask: Tensor, head: nn.Module) -> Tensor:
        small = F.interpolate(mask, size=x.shape[2:], mode="nearest")
        c = x.shape[1] // CLASSES
        weighed = x * small.repeat_interleave(c, dim=1)
        area = small.sum(dim=(2, 3)).repeat_interleave(c, dim=1)
        mean = weighed.sum(dim=(2, 3)) / (area + 1e-5)
        return head(mean[:, :, None]).reshape(len(x), CLASSES, self.width)


def buffers(steps: int = 1000, start: float = 0.0015, end: float = 0.0195) -> dict[str, Tensor]:
    """The twelve that every model of latent diffusion keeps of its schedule."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    names = (
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    )
    return {"betas": betas.float(), **{name: torch.zeros(steps) for name in names}}


def with_prefix(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Its state under a prefix."""
    return {prefix + name: value for name, value in module.state_dict().items()}


def moving_average(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys of an EMA beside `model.*`, with other values."""
    made = {f"model_ema.{n.removeprefix('model.').replace('.', '')}": v * 0.9 for n, v in state.items()}
    return {
        **made,
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
    }
