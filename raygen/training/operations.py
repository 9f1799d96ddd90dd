"""Operations of a training, counted without weights and data; see `raygen.models.operations`."""

from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raygen.core.errors import ConfigError
from raygen.core.face_labels import ATTRIBUTES
from raygen.core.pixels import to_pixels
from raygen.extractors.config import LPIPSConfig
from raygen.models import checkpoint_folder
from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.operations import operations_of_decoding, weightless
from raygen.training.config.recipe import TrainRecipe, folders_of, is_denoiser
from raygen.training.losses import AutoencoderObjective, DiffusionObjective, Objective

__all__ = ["operations_a_picture", "training_operations"]


#: Convolutions of VGG-16, by their channels; M halves the sides. Simonyan and Zisserman 2015, configuration D.
VGG16: Final = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


class _Trunk(nn.Module):
    """The convolutions of LPIPS on VGG-16, which need no weights to be counted."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in VGG16:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers.append(nn.Conv2d(channels, width, 3, padding=1).requires_grad_(False))
                channels = width
        self.layers = nn.Sequential(*layers)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """A number a pair, as LPIPS has it."""
        result: Tensor = (self.layers(made) - self.layers(real)).square().mean(dim=(1, 2, 3))
        return result


def training_operations(recipe: TrainRecipe) -> float:
    """Operations of a whole training, forward and backward; those of its frozen networks included.

    `ConfigError` where a part of the model is missing, the training has no number of steps, or its kind is not counted.
    """
    training = recipe.training
    if training.steps is None:
        raise ConfigError("the training ends by time, not by steps")
    return operations_a_picture(recipe) * training.batch * training.steps


def operations_a_picture(recipe: TrainRecipe) -> float:
    """Operations of one step for one picture, averaged over the training."""
    objective, batch = _objective(recipe)
    total, steps = 0.0, recipe.training.steps or 1
    late = getattr(recipe.reconstruction.discriminator, "start", 0) if not is_denoiser(recipe.model) else 0
    spans = [(0, min(late, steps)), (late, max(steps - late, 0))] if late else [(0, steps)]
    for step, length in spans:
        objective.step = step
        if length:
            total += _one_step(objective, batch, recipe.training.gradient_checkpointing) * length / steps
    return total + _mask_aware(recipe, objective)


def _mask_aware(recipe: TrainRecipe, objective: Objective) -> float:
    """Of the terms on the one-step estimate, which the small timesteps have: decoding and LPIPS, not the embedder."""
    terms = recipe.mask_aware
    if terms is None or not terms.decodes or not isinstance(objective, DiffusionObjective):
        return 0.0
    stage = objective.model.first_stage
    passes = 4 if terms.checkpoint_decoder else 3  # forward and backward, and forward once more
    total = passes * operations_of_decoding(stage)
    if terms.perceptual and isinstance(terms.network, LPIPSConfig):
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            picture = torch.zeros(1, 3, stage.config.image_size, stage.config.image_size)
            _Trunk()(picture, picture)
        total += 1.5 * counter.get_total_flops()  # two pictures forward, one backward
    return total * terms.below / objective.timesteps


def _one_step(objective: Objective, batch: dict[str, Tensor], again: bool) -> float:
    """`again`: the forward pass is computed a second time, for the gradients."""
    total = 0.0
    for phase in range(len(objective.phases())):
        if not objective.active(phase):
            continue
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            loss = objective(batch, phase)["loss"]
            forward = counter.get_total_flops()
            loss.backward()
        total += counter.get_total_flops() + (forward if again else 0)
    return total


def _objective(recipe: TrainRecipe) -> tuple[Objective, dict[str, Tensor]]:
    if is_denoiser(recipe.model):
        assert recipe.first_stage is not None
        model = weightless(recipe.model, _stage_config(recipe))
        objective = DiffusionObjective(model, recipe.loss, recipe.dropout, recipe.attention_loss).to("meta")
        return objective, _batch(model, encoded=recipe.latents is not None)
    if recipe.model.kind != "autoencoder":
        raise ConfigError(f"a training of a {recipe.model.kind} is not counted")
    with torch.device("meta"):
        stage = FirstStage(cast(AutoencoderConfig, recipe.model))
        side = stage.config.image_size
        perceptual = None if recipe.reconstruction.perceptual == "none" else _Trunk()
        autoencoder = AutoencoderObjective(stage, recipe.reconstruction, perceptual)
        images = torch.zeros(1, side, side, 3, dtype=torch.uint8)
        return autoencoder, {"images": images, "posterior": torch.zeros(1, *stage.latent_shape)}


def _stage_config(recipe: TrainRecipe) -> AutoencoderConfig | None:
    """The first stage; one that makes latents of the same shape where it is not there and latents are read anyway."""
    if folders_of(recipe.model):
        return None
    try:
        return checkpoint_folder.first_stage_config(str(recipe.first_stage))
    except ConfigError:
        latent = getattr(recipe.model, "latent", None)
        if latent is None or recipe.latents is None:
            raise
        channels, side, _ = latent
        # Halved twice, as KL-f4 and VQ-f4 do.
        return AutoencoderConfig(image_size=4 * side, patch=1, channels=(32, 32, 32), latent_channels=channels)


def _batch(model: Model, *, encoded: bool) -> dict[str, Tensor]:
    """A batch of one picture, as the training loop makes it. `encoded`: with latents in place of the picture alone."""
    side = model.first_stage.config.image_size
    with torch.device("meta"):
        latent = torch.zeros(1, *model.latent_shape)
        batch = {
            "t": torch.zeros(1, dtype=torch.int64),
            "noise": latent,
            "posterior": latent,
            "dropout": torch.zeros(1),
            "images": torch.zeros(1, side, side, 3, dtype=torch.uint8),
            "mask": torch.zeros(1, side, side, dtype=torch.uint8),
            "attributes": torch.zeros(1, len(ATTRIBUTES)),
            "text": torch.zeros(1, model.shapes.text_length, dtype=torch.int64),
            "hint": torch.zeros(1, side, side, 3, dtype=torch.uint8),
        }
        batch |= {f"present_{name}": torch.zeros(1, dtype=torch.bool) for name in model.modalities}
        if encoded:
            with torch.no_grad():
                batch["moments"] = model.first_stage.encode(to_pixels(batch["images"]))
    return batch
