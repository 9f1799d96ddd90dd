"""Settings of a training that have no effect beside others, and are refused."""

from typing import Any, Final

from raygen.core.no_effect import NoEffect
from raygen.models import checkpoint_folder

__all__ = ["TRAINING"]


def _is_denoiser(recipe: Any) -> bool:
    return recipe.model.kind in checkpoint_folder.FAMILIES


def _modalities(recipe: Any) -> frozenset[str] | None:
    """The conditions of a new model; None where they depend on the trained models that it is put together from."""
    if not _is_denoiser(recipe):
        return frozenset()
    family = checkpoint_folder.family_of(recipe.model)
    return None if family.folders(recipe.model) else family.needs(recipe.model, {})


def _is_not(*kinds: str) -> Any:
    return lambda recipe: recipe.model.kind not in kinds


def _stage_is_not(*stages: str) -> Any:
    return lambda recipe: getattr(recipe.model, "stage", None) not in stages


def _other_dropout(recipe: Any) -> bool:
    known = _modalities(recipe)
    return _is_denoiser(recipe) and known is not None and not set(recipe.dropout.only) <= known


def _reads_no_texts(recipe: Any) -> bool:
    known = _modalities(recipe)
    return known is not None and "text" not in known


def _not_denoising(recipe: Any) -> bool:
    return not _is_denoiser(recipe)


_DENOISERS: Final = "only a diffusion model has it; leave it out"
_AUTOENCODERS: Final = "only the training of an autoencoder scores reconstructions; leave it out"
#: Every such setting of a `TrainRecipe`. `training.horizontal_flip` depends on the latents: see `TrainJob.arrays`.
TRAINING: Final = (
    NoEffect("first_stage", _not_denoising, "only a diffusion model works on the latents of one; leave it out"),
    NoEffect("latents", _not_denoising, "only a diffusion model trains on latents; leave it out"),
    NoEffect("loss", _not_denoising, _DENOISERS),
    NoEffect("dropout", _not_denoising, "only a diffusion model has conditions to drop; leave it out"),
    NoEffect(
        "dropout.only",
        _other_dropout,
        "it names conditions that are not among model.modalities; leave them out",
    ),
    NoEffect(
        "caption",
        _reads_no_texts,
        "the model reads no texts; leave it out, or put text into model.modalities",
    ),
    NoEffect("reconstruction", _is_not("autoencoder"), "only an autoencoder reconstructs pictures; leave it out"),
    NoEffect("validation_split", _is_not("autoencoder"), _AUTOENCODERS),
    NoEffect("validation_pictures", _is_not("autoencoder"), _AUTOENCODERS),
    NoEffect(
        "reconstruction.kl",
        lambda recipe: recipe.reconstruction.kl > 0 and _stage_is_not("kl")(recipe),
        "only model.stage=kl has a divergence; set it to 0 or leave it out",
    ),
    NoEffect(
        "reconstruction.codebook",
        lambda recipe: recipe.reconstruction.codebook > 0 and _stage_is_not("vq")(recipe),
        "only model.stage=vq has a codebook; set it to 0 or leave it out",
    ),
    NoEffect("reconstruction.codebook_form", _stage_is_not("vq"), "only model.stage=vq has a codebook; leave it out"),
    NoEffect(
        "training.sheet_every",
        lambda recipe: _not_denoising(recipe) and recipe.model.kind != "autoencoder",
        "this network makes no pictures; leave it out",
    ),
    NoEffect(
        "mask_aware",
        lambda recipe: recipe.mask_aware is not None and recipe.mask_aware.below == 0,
        "no timestep lies below mask_aware.below=0; raise it, or leave mask_aware out",
    ),
    NoEffect("model.codes", _stage_is_not("vq"), "only model.stage=vq has a codebook; leave it out"),
    NoEffect(
        "model.mid_attention",
        _stage_is_not("kl", "vq"),
        "only model.stage=kl and vq have attention in the middle block; leave it out",
    ),
    NoEffect(
        "model.latents_mean", _stage_is_not("dc"), "other stages than dc keep it in their own config; leave it out"
    ),
    NoEffect(
        "model.latents_std", _stage_is_not("dc"), "other stages than dc keep it in their own config; leave it out"
    ),
    NoEffect(
        "model.head_dim",
        lambda recipe: getattr(recipe.model, "heads", None) is not None,
        "model.heads gives the number of heads; leave out one of the two",
    ),
    NoEffect(
        "model.mask_channels",
        lambda recipe: "mask" in recipe.model.modalities and recipe.model.mask_path != "channels",
        "masks enter as tokens; leave it out, or set model.mask_path=channels",
    ),
    NoEffect(
        "model.mask_side",
        lambda recipe: "mask" in recipe.model.modalities and recipe.model.mask_path != "tokens",
        "masks enter as channels; leave it out, or set model.mask_path=tokens",
    ),
    NoEffect(
        "model.mask_class_embedding",
        lambda recipe: "mask" in recipe.model.modalities and recipe.model.mask_path != "tokens",
        "masks enter as channels; leave it out, or set model.mask_path=tokens",
    ),
    NoEffect(
        "model.attribute_tokens",
        lambda recipe: "attributes" in recipe.model.modalities and recipe.model.attribute_path == "vector",
        "attributes enter as a vector; leave it out, or set model.attribute_path=tokens",
    ),
    NoEffect(
        "model.hint_channels",
        lambda recipe: recipe.model.hint == "none",
        "the branch has no hint; leave it out, or set model.hint",
    ),
    NoEffect(
        "model.gating",
        lambda recipe: recipe.model.style is None,
        "a model without styles has no attention to gate; leave it out",
    ),
)
