"""Small condition encoders: attributes -> tokens and a vector, mask -> feature maps or tokens.

Each also defines its output for an absent condition. They run once a batch, never once a step.
"""

import torch
from torch import Tensor, nn

from raygen.core.face_labels import ATTRIBUTES, CLASSES

__all__ = ["AttributeEncoder", "MaskEncoder", "MaskTokenEncoder"]


class AttributeEncoder(nn.Module):
    """40 attributes in -1, 0 (unknown), 1 -> `tokens` cross-attention tokens and one vector.

    Yes and no have their own weights, unknown has none, so an unknown attribute adds nothing. A row without
    attributes gets a learned null, which is not the same as 40 unknowns.
    """

    def __init__(self, tokens: int, width: int, vector: int, hidden: int = 128) -> None:
        super().__init__()
        self.config = {"tokens": tokens, "width": width, "vector": vector, "hidden": hidden}
        self.tokens, self.width = tokens, width
        self.trunk = nn.Sequential(nn.Linear(2 * len(ATTRIBUTES), hidden), nn.SiLU())
        self.to_tokens = nn.Linear(hidden, tokens * width) if tokens else None
        self.to_vector = nn.Linear(hidden, vector) if vector else None
        self.null_tokens = nn.Parameter(0.02 * torch.randn(1, tokens, width)) if tokens else None
        self.null_vector = nn.Parameter(torch.zeros(1, vector)) if vector else None

    def forward(self, attributes: Tensor, present: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """attributes [B, 40], present bool [B] -> tokens [B, K, D] and vector [B, E], None where not asked for."""
        values = attributes.to(next(self.parameters()).dtype)
        hidden = self.trunk(torch.cat([values.clamp(min=0), (-values).clamp(min=0)], dim=1))  # [B, hidden]
        tokens = vector = None
        if self.to_tokens is not None and self.null_tokens is not None:
            seen = self.to_tokens(hidden).view(-1, self.tokens, self.width)  # [B, K, D]
            tokens = torch.where(present[:, None, None], seen, self.null_tokens)
        if self.to_vector is not None and self.null_vector is not None:
            vector = torch.where(present[:, None], self.to_vector(hidden), self.null_vector)  # [B, E]
        return tokens, vector


class MaskEncoder(nn.Module):
    """A class mask at picture size -> `channels` maps at latent size, and one more that is 1 where there is a mask.

    A one-hot patch of `factor` x `factor` pixels goes through a small network of its own before it is reduced,
    so an eye of three pixels still changes the features of its latent position. Absent masks are all zeros.
    """

    def __init__(self, factor: int, channels: int, hidden: int = 64, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.config = {"factor": factor, "channels": channels, "hidden": hidden, "classes": classes}
        self.classes = classes
        self.patch = nn.Conv2d(classes, hidden, kernel_size=factor, stride=factor)
        self.mix = nn.Sequential(nn.SiLU(), nn.Conv2d(hidden, channels, kernel_size=1))

    def forward(self, mask: Tensor, present: Tensor) -> Tensor:
        """mask uint8 [B, H, W], present bool [B] -> [B, channels + 1, H / factor, W / factor]."""
        one_hot = _one_hot(mask, self.classes, self.patch.weight.dtype)  # [B, classes, H, W]
        features = self.mix(self.patch(one_hot))  # [B, channels, h, w]
        flag = present.to(features.dtype).view(-1, 1, 1, 1)
        return torch.cat([features * flag, flag.expand(-1, 1, *features.shape[2:])], dim=1)


class MaskTokenEncoder(nn.Module):
    """A class mask -> one token a class: its `side` x `side` shape through one linear layer shared by all classes.

    As in Collaborative Diffusion, two classes of the same shape have the same token; `class_embedding` adds a learned
    vector for each class. An absent mask gives the tokens of nineteen empty shapes.
    """

    def __init__(self, side: int, width: int, class_embedding: bool, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.config = {"side": side, "width": width, "class_embedding": class_embedding, "classes": classes}
        self.side, self.classes = side, classes
        self.shape = nn.Linear(side * side, width)
        self.names = nn.Parameter(0.02 * torch.randn(1, classes, width)) if class_embedding else None

    def forward(self, mask: Tensor, present: Tensor) -> Tensor:
        """mask uint8 [B, H, W], present bool [B] -> tokens [B, classes, width]."""
        size = mask.shape[-1]
        index = ((torch.arange(self.side, device=mask.device) + 0.5) * size / self.side).long()
        small = mask if size == self.side else mask[:, index][:, :, index]
        one_hot = _one_hot(small, self.classes, self.shape.weight.dtype).flatten(2)  # [B, classes, side²]
        tokens: Tensor = self.shape(one_hot * present.to(one_hot.dtype).view(-1, 1, 1))
        return tokens if self.names is None else tokens + self.names


def _one_hot(mask: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """uint8 [B, H, W] -> [B, classes, H, W]."""
    zeros = torch.zeros(len(mask), classes, *mask.shape[1:], dtype=dtype, device=mask.device)
    return zeros.scatter_(1, mask.long().unsqueeze(1), 1.0)
