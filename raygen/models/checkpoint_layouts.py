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
from raygen.models.collaborative import Collaborative, CollaborativeSpec, DynamicDiffuser, diffuser_spec
from raygen.models.controlnet import Control, ControlSpec, control_modalities, new_branch
from raygen.models.ldm import LDM, LDMSpec
from raygen.models.scadm import SCADM, SCADMSpec
from raygen.models.stable_diffusion import KIND, load_stable
from raygen.models.text import FrozenText, PretrainedText, Tokenizer, empty_encoder

__all__ = ["FAMILIES", "FORMAT", "Family", "family", "family_of"]


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
    return {"model": model.spec.model_dump(mode="json")}


def _ldm(root: Path, document: Document, stage: FirstStage) -> LDM:
    spec: LDMSpec = parse(LDMSpec, document["model"], str(root / "raygen.json"))
    tokenizer, frozen = _text(root, spec)
    model = LDM(spec, stage, read_diffusers(root / "unet"), tokenizer=tokenizer, frozen_text=frozen)
    for name, module in model.encoders().items():
        if read_json(root / name / "config.json") != module.config:
            raise InputError(f"{root / name}: config.json does not fit raygen.json", reason="checkpoint")
        fill(module, root / name / OWN_WEIGHTS)
    return model


def _text(root: Path, spec: LDMSpec) -> tuple[Tokenizer | None, FrozenText | None]:
    """The tokenizer, and the shell of a pretrained encoder whose weights are filled in like any other's."""
    if "text" not in spec.modalities:
        return None, None
    pretrained = isinstance(spec.text, PretrainedText)
    frozen = empty_encoder(read_json(root / "text_encoder" / "config.json")) if pretrained else None
    return Tokenizer.load(root / "tokenizer"), frozen


# --- scadm --------------------------------------------------------------------------------------------------


def _write_scadm(model: SCADM, folder: Path, how: Writing, index: Index) -> dict[str, Any]:
    """Not as a diffusers model: none of its classes has SPADE blocks."""
    write_weights(model.unet, folder / "unet" / OWN_WEIGHTS, how)
    for name, module in model.encoders().items():
        write_weights(module, folder / name / OWN_WEIGHTS, how)
    return {"model": model.spec.model_dump(mode="json")}


def _scadm(root: Path, document: Document, stage: FirstStage) -> SCADM:
    spec: SCADMSpec = parse(SCADMSpec, document["model"], str(root / "raygen.json"))
    model = SCADM(spec, stage)
    fill(model.unet, root / "unet" / OWN_WEIGHTS)
    for name, module in model.encoders().items():
        fill(module, root / name / OWN_WEIGHTS)
    return model


# --- collaborative ------------------------------------------------------------------------------------------


def _write_collaborative(model: Collaborative, folder: Path, how: Writing, index: Index) -> dict[str, Any]:
    """Experts and diffusers; the spec as it reads inside the folder, where the experts lie now."""
    for name in model.experts:
        expert, inside = model.expert(name), folder / "experts" / name
        document = {
            "first_stage": model.first_stage.spec.model_dump(mode="json"),
            **_write_ldm(expert, inside, how, {}),
        }
        write_json(inside / "raygen.json", {"format": FORMAT, **document})
    for name in model.experts:
        diffuser, inside = model.diffuser(name), folder / "diffusers" / name
        write_diffusers(diffuser.unet, inside, how, {})
        if diffuser.vector is not None:
            write_weights(diffuser.vector, inside / OWN_WEIGHTS, how)
    experts = {name: f"experts/{name}" for name in model.experts}
    spec = model.spec.model_copy(update={"experts": experts, "nulls": model.nulls})
    return {"model": spec.model_dump(mode="json")}


def _collaborative(root: Path, document: Document, stage: FirstStage) -> Collaborative:
    spec: CollaborativeSpec = parse(CollaborativeSpec, document["model"], str(root / "raygen.json"))
    inside = {name: root / "experts" / name for name in spec.experts}
    experts = {name: _ldm(folder, read_json(folder / "raygen.json"), stage) for name, folder in inside.items()}
    diffusers = {name: _diffuser(root / "diffusers" / name, spec, expert) for name, expert in experts.items()}
    return Collaborative(spec, experts, nulls=spec.nulls or (), diffusers=diffusers)


def _diffuser(folder: Path, spec: CollaborativeSpec, expert: LDM) -> DynamicDiffuser:
    width = expert.spec.vector_width
    diffuser = DynamicDiffuser(diffuser_spec(spec, expert.spec), expert.latent_shape, width, read_diffusers(folder))
    if diffuser.vector is not None:
        fill(diffuser.vector, folder / OWN_WEIGHTS)
    return diffuser


# --- control ------------------------------------------------------------------------------------------------


def _write_control(model: Control, folder: Path, how: Writing, index: Index) -> dict[str, Any]:
    """The base as an ldm lies, and the branch beside it, as pipelines with a ControlNet expect them."""
    base = _write_ldm(model.base, folder, how, index)["model"]
    write_diffusers(model.branch, folder / "controlnet", how, index)
    spec = model.spec.model_copy(update={"base": "."})
    return {"model": spec.model_dump(mode="json"), "base": base}


def _control(root: Path, document: Document, stage: FirstStage) -> Control:
    spec: ControlSpec = parse(ControlSpec, document["model"], str(root / "raygen.json"))
    base = _ldm(root, {"model": document["base"]}, stage)
    branch = new_branch(spec, base.unet, stage.factor)
    fill(branch, root / "controlnet" / DIFFUSERS_WEIGHTS)
    return Control(spec, base, branch)


def _control_modalities(root: Path, document: Document) -> frozenset[str]:
    spec: ControlSpec = parse(ControlSpec, document["model"], str(root / "raygen.json"))
    return control_modalities(spec, _own_modalities(root, {"model": document["base"]}))


# --- every family -------------------------------------------------------------------------------------------


def _own_modalities(root: Path, document: Document) -> frozenset[str]:
    """Those of a model that is read from raygen.json alone."""
    spec: LDMSpec | SCADMSpec = parse(LDMSpec | SCADMSpec, document["model"], str(root / "raygen.json"))
    return frozenset(spec.modalities)


def _experts_modalities(root: Path, document: Document) -> frozenset[str]:
    """Those of all experts together."""
    folders = [root / "experts" / name for name in document["model"]["experts"]]
    return frozenset().union(*(_own_modalities(f, read_json(f / "raygen.json")) for f in folders))


class Family(NamedTuple):
    """What a checkpoint folder needs to know of one."""

    model: type[Model]
    #: (model, folder, how weights are written, lines of model_index.json) -> what raygen.json says of it.
    write: Callable[[Any, Path, Writing, Index], dict[str, Any]]
    #: (folder, raygen.json, its first stage) -> the model.
    read: Callable[[Path, Document, FirstStage], Model]
    #: (folder, raygen.json) -> the conditions it takes, without loading it.
    modalities: Callable[[Path, Document], frozenset[str]]


FAMILIES: Final[Mapping[str, Family]] = {
    "ldm": Family(LDM, _write_ldm, _ldm, _own_modalities),
    "scadm": Family(SCADM, _write_scadm, _scadm, _own_modalities),
    "control": Family(Control, _write_control, _control, _control_modalities),
    KIND: Family(LDM, _write_ldm, load_stable, _own_modalities),
    "collaborative": Family(Collaborative, _write_collaborative, _collaborative, _experts_modalities),
}


def family(kind: object, where: object) -> Family:
    """The family of that name; `InputError` (`checkpoint`) where there is none."""
    found = FAMILIES.get(str(kind))
    if found is None:
        raise InputError(f"{where}: a {kind!r} is no family of ours", reason="checkpoint")
    return found


def family_of(model: Model) -> Family:
    """The family of a model."""
    return next(found for found in FAMILIES.values() if type(model) is found.model)
