"""Objectives: modules that hold what they train and turn a batch of tensors into losses.

There are the diffusion losses (simple, p2, min_snr, mask-aware), the first stage's with its discriminator, and those of
the parser, the classifier and the embedder. They use no random numbers of their own: noise, timesteps and dropout are
in the batch, so a batch has one loss.

A batch is a mapping of tensors with the picture first:
    images         uint8 [B, H, W, 3]     pixels, for first stages and where latents are not cached
    moments        float [B, C or 2C, ..] cached first-stage moments instead of images
    posterior      float [B, C, h, w]     noise that samples the first stage's posterior
    noise          float [B, C, h, w]     eps
    t              int64 [B]              timestep
    dropout        float [B]              in [0, 1), for condition dropout
    mask, attributes, text, hint, present_…   conditions and whether they are there
    identity       int64 [B]              number of the person, for embedders
    boxes, keypoints  float [B, K, 4 or 3]  in parts of the picture's side; zeros are none
    total_…        a sum over the whole batch of a step, where this is a part of it: see `Objective.totals`
"""

from raygen.training.losses.autoencoder import AutoencoderObjective, edges
from raygen.training.losses.base import Batch, Losses, Objective
from raygen.training.losses.diffusion import DiffusionObjective
from raygen.training.losses.discriminator import PatchDiscriminator
from raygen.training.losses.mask_aware import MaskAwareObjective
from raygen.training.losses.recognition import ClassifierObjective, EmbedderObjective, ParserObjective

__all__ = [
    "AutoencoderObjective",
    "Batch",
    "ClassifierObjective",
    "DiffusionObjective",
    "EmbedderObjective",
    "Losses",
    "MaskAwareObjective",
    "Objective",
    "ParserObjective",
    "PatchDiscriminator",
    "edges",
]
