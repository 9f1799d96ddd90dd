"""How each family of models lies in a checkpoint folder: what it writes beside the first stage, and how it is read.

Knows the folders of a family's parts. Knows neither the first stage's folder nor how a folder is replaced as a whole.

A new family is a function that writes, one that reads, and its line in `FAMILIES`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from raygen.core.config import parse
from raygen.core.errors import InputError
from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.checkpoint_files import (
    DIFFUSERS_WEIGHTS,
    OWN_WEIGHTS,
    Writing,
    fill,
    read_diffusers,
    read_json,
    write_diffusers,
    write_json,
    write_weights,
)
from raygen.models.collaborative import Collaborative, CollaborativeConfig, DynamicDiffuser, diffuser_config
from raygen.models.controlnet import ControlNetConfig, ControlNetLDM, control_modalities, new_branch
from raygen.models.ldm import LDM, LDMConfig
from raygen.models.scadm import SCADM, SCADMConfig
from raygen.models.stable_diffusion import KIND, load_stable
from raygen.models.text import FrozenText, PretrainedTextConfig, Tokenizer, empty_encoder

__all__ = ["FAMILIES", "FORMAT", "FamilyLayout", "family", "family_of"]


FORMAT: Final = 1


Index = dict[str, Any]
Document = Mapping[str, Any]


# --- ldm ----------------------------------------------------------------------------------------------------


def _write_ldm(model: LDM, folder: Path, how: Writing, index: Index) -> dict[str, Any]:
    write_diffusers(model.unet, folder / "unet", how, index)
    for name, module in model.encoders().items():
        write_json(folder / name / "config.json", module.config)
        write_weights(module, folder / name / OWN_WEIGHTS, how)
    if model.tokenizer is not None:
        model.tokenizer.save(folder / "tokenizer")
    return {"model": model.config.model_dump(mode="json")}


def _ldm(root: Path, document: Document, stage: FirstStage) -> LDM:
    config: LDMConfig = parse(LDMConfig, document["model"], str(root / "raygen.json"))
    tokenizer, frozen = _text(root, config)
    model = LDM(config, stage, read_diffusers(root / "unet"), tokenizer=tokenizer, frozen_text=frozen)
    for name, module in model.encoders().items():
        if read_json(root / name / "config.json") != module.config:
            raise InputError(f"{root / name}: config.json does not fit raygen.json", reason="checkpoint")
        fill(module, root / name / OWN_WEIGHTS)
    return model


def _text(root: Path, config: LDMConfig) -> tuple[Tokenizer | None, FrozenText | None]:
    """The tokenizer, and the shell of a pretrained encoder whose weights are filled in like any other's."""
    if "text" not in config.modalities:
        return None, None
    pretrained = isinstance(config.text, PretrainedTextConfig)
    frozen = empty_encoder(read_json(root / "text_encoder" / "config.json")) if pretrained else None
    return Tokenizer.load(root / "tokenizer"), frozen


# --- scadm --------------------------------------------------------------------------------------------------


def _write_scadm(model: SCADM, folder: Path, how: Writing, index: Index) -> dict[str, Any]:
    """Not as a diffusers model: none of its classes has SPADE blocks."""
    write_weights(model.unet, folder / "unet" / OWN_WEIGHTS, how)
    for name, module in model.encoders().items():
        write_weights(module, folder / name / OWN_WEIGHTS, how)
    return {"model": model.config.model_dump(mode="json")}


def _scadm(root: Path, document: Document, stage: FirstStage) -> SCADM:
    config: SCADMConfig = parse(SCADMConfig, document["model"], str(root / "raygen.json"))
    model = SCADM(config, stage)
    fill(model.unet, root / "unet" / OWN_WEIGHTS)
    for name, module in model.encoders().items():
        fill(module, root / name / OWN_WEIGHTS)
    return model


# --- collaborative ------------------------------------------------------------------------------------------


def _write_collaborative(model: Collaborative, folder: Path, how: Writing, index: Index) -> dict[str, Any]:
    """Experts and diffusers; the config as it reads inside the folder, where the experts lie now."""
    for name in model.experts:
        expert, inside = model.expert(name), folder / "experts" / name
        document = {
            "first_stage": model.first_stage.config.model_dump(mode="json"),
            **_write_ldm(expert, inside, how, {}),
        }
        write_json(inside / "raygen.json", {"format": FORMAT, **document})
    for name in model.experts:
        diffuser, inside = model.diffuser(name), folder / "diffusers" / name
        write_diffusers(diffuser.unet, inside, how, {})
        if diffuser.vector is not None:
            write_weights(diffuser.vector, inside / OWN_WEIGHTS, how)
    experts = {name: f"experts/{name}" for name in model.experts}
    config = model.config.model_copy(update={"experts": experts, "nulls": model.nulls})
    return {"model": config.model_dump(mode="json")}


def _collaborative(root: Path, document: Document, stage: FirstStage) -> Collaborative:
    config: CollaborativeConfig = parse(CollaborativeConfig, document["model"], str(root / "raygen.json"))
    inside = {name: root / "experts" / name for name in config.experts}
    experts = {name: _ldm(folder, read_json(folder / "raygen.json"), stage) for name, folder in inside.items()}
    diffusers = {name: _diffuser(root / "diffusers" / name, config, expert) for name, expert in experts.items()}
    return Collaborative(config, experts, nulls=config.nulls or (), diffusers=diffusers)


def _diffuser(folder: Path, config: CollaborativeConfig, expert: LDM) -> DynamicDiffuser:
    width = expert.config.vector_width
    diffuser = DynamicDiffuser(
        diffuser_config(config, expert.config), expert.latent_shape, width, read_diffusers(folder)
    )
    if diffuser.vector is not None:
        fill(diffuser.vector, folder / OWN_WEIGHTS)
    return diffuser


# --- control ------------------------------------------------------------------------------------------------


def _write_control(model: ControlNetLDM, folder: Path, how: Writing, index: Index) -> dict[str, Any]:
    """The base as an ldm lies, and the branch beside it, as pipelines with a ControlNet expect them."""
    base = _write_ldm(model.base, folder, how, index)["model"]
    write_diffusers(model.branch, folder / "controlnet", how, index)
    config = model.config.model_copy(update={"base": "."})
    return {"model": config.model_dump(mode="json"), "base": base}


def _control(root: Path, document: Document, stage: FirstStage) -> ControlNetLDM:
    config: ControlNetConfig = parse(ControlNetConfig, document["model"], str(root / "raygen.json"))
    base = _ldm(root, {"model": document["base"]}, stage)
    branch = new_branch(config, base.unet, stage.factor)
    fill(branch, root / "controlnet" / DIFFUSERS_WEIGHTS)
    return ControlNetLDM(config, base, branch)


def _control_modalities(root: Path, document: Document) -> frozenset[str]:
    config: ControlNetConfig = parse(ControlNetConfig, document["model"], str(root / "raygen.json"))
    return control_modalities(config, _own_modalities(root, {"model": document["base"]}))


# --- every family -------------------------------------------------------------------------------------------


def _own_modalities(root: Path, document: Document) -> frozenset[str]:
    """Those of a model that is read from raygen.json alone."""
    config: LDMConfig | SCADMConfig = parse(LDMConfig | SCADMConfig, document["model"], str(root / "raygen.json"))
    return frozenset(config.modalities)


def _experts_modalities(root: Path, document: Document) -> frozenset[str]:
    """Those of all experts together."""
    folders = [root / "experts" / name for name in document["model"]["experts"]]
    return frozenset().union(*(_own_modalities(f, read_json(f / "raygen.json")) for f in folders))


class FamilyLayout(NamedTuple):
    """What a checkpoint folder needs to know of one."""

    model: type[Model]
    #: (model, folder, how weights are written, lines of model_index.json) -> what raygen.json says of it.
    write: Callable[[Any, Path, Writing, Index], dict[str, Any]]
    #: (folder, raygen.json, its first stage) -> the model.
    read: Callable[[Path, Document, FirstStage], Model]
    #: (folder, raygen.json) -> the conditions it takes, without loading it.
    modalities: Callable[[Path, Document], frozenset[str]]


FAMILIES: Final[Mapping[str, FamilyLayout]] = {
    "ldm": FamilyLayout(LDM, _write_ldm, _ldm, _own_modalities),
    "scadm": FamilyLayout(SCADM, _write_scadm, _scadm, _own_modalities),
    "control": FamilyLayout(ControlNetLDM, _write_control, _control, _control_modalities),
    KIND: FamilyLayout(LDM, _write_ldm, load_stable, _own_modalities),
    "collaborative": FamilyLayout(Collaborative, _write_collaborative, _collaborative, _experts_modalities),
}


def family(kind: object, where: object) -> FamilyLayout:
    """The family of that name; `InputError` (`checkpoint`) where there is none."""
    found = FAMILIES.get(str(kind))
    if found is None:
        raise InputError(f"{where}: a {kind!r} is no family of ours", reason="checkpoint")
    return found


def family_of(model: Model) -> FamilyLayout:
    """The family of a model."""
    return next(found for found in FAMILIES.values() if type(model) is found.model)
