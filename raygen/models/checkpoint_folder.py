"""What a checkpoint folder says of its model, without loading it: nothing here imports torch."""

import hashlib
from pathlib import Path
from typing import Final

from raygen.core.config import Config
from raygen.core.errors import ConfigError, InputError, IntegrityError
from raygen.core.hashing import canonical
from raygen.models.checkpoint_documents import FORMAT, OpenedCheckpoint, read_json, weight_file
from raygen.models.config import collaborative, controlnet, ldm, scadm, stable_diffusion
from raygen.models.config.autoencoder import AutoencoderConfig, pixel_stage
from raygen.models.config.mixing import Mixing
from raygen.models.config.noise import NoiseSchedule
from raygen.models.family import Family
from raygen.store.fetched import local_folder
from raygen.store.sealed import FILES, SEAL, open_record, read_record

__all__ = [
    "FAMILIES",
    "check_mixing",
    "digest",
    "family_in",
    "family_of",
    "first_stage_config",
    "kind_of",
    "modalities",
    "modalities_of",
    "open_checkpoint",
    "open_model",
    "open_parts",
    "schedule_in",
]


#: Every kind of denoiser. The last one is a layout of folders that other software writes.
FAMILIES: Final[dict[str, Family]] = {
    family.kind: family
    for family in (ldm.FAMILY, controlnet.FAMILY, collaborative.FAMILY, scadm.FAMILY, stable_diffusion.FAMILY)
}


def family_of(config: Config) -> Family:
    """The family of a denoiser's config; `KeyError` where it is none."""
    return FAMILIES[config.kind]  # type: ignore[attr-defined]


def modalities_of(config: Config) -> frozenset[str]:
    """The conditions that a new model of this config will take; errors as for `load`."""
    family = family_of(config)
    return family.needs(config, {name: modalities(folder) for name, folder in family.folders(config).items()})


def modalities(folder: str | Path) -> frozenset[str]:
    """The conditions that the model of a folder reads, without loading it; errors as for `load`."""
    opened = open_checkpoint(folder)
    return _modalities(opened) if "model" in opened.document else frozenset()


def check_mixing(folder: str | Path, mixing: Mixing) -> None:
    """`ConfigError` where the model of a folder cannot be mixed so, without loading it; errors as for `load`."""
    opened = open_checkpoint(folder)
    family = family_in(opened) if "model" in opened.document else None
    if family is None or family.check_mixing is None:
        raise ConfigError(f"mixing: {opened.root} holds one denoiser, there is nothing to mix")
    family.check_mixing(family.parse(opened), mixing)


def first_stage_config(folder: str | Path) -> AutoencoderConfig:
    """The shape of the first stage of a folder, or of `pixels-64`, without loading it; errors as for `load`."""
    return pixel_stage(str(folder)) or open_checkpoint(folder).first_stage


def digest(folder: str | Path) -> str:
    """sha256 over the sorted lines `name sha256` of the files that make the model.

    Notes beside them do not count (nor check sums, the recipe and the times in raygen.json: the same model is the same
    however long it took), nor does the folder `training`, where a job keeps what it resumes from.
    """
    if pixel_stage(str(folder)) is not None:
        return hashlib.sha256(str(folder).encode()).hexdigest()
    root = Path(local_folder(folder))
    open_checkpoint(root)
    files = {p.relative_to(root): p for p in root.rglob("*") if _makes_the_model(p)}
    lines = []
    for name, path in files.items():
        if name.parts[0] == "training":
            continue
        if path.name == "raygen.json":
            document = {key: value for key, value in read_json(path).items() if key not in ("extra", FILES, SEAL)}
            sha256 = hashlib.sha256(canonical(document)).hexdigest()
        else:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{name.as_posix()} {sha256}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _makes_the_model(path: Path) -> bool:
    """Whether a file is read when its folder is loaded; pickles are where there is nothing else."""
    if path.suffix == ".bin":
        first = weight_file(path.parent)
        return first is not None and ".bin" in first.suffixes
    return path.suffix in (".safetensors", ".json") and path.is_file()


def open_checkpoint(folder: str | Path) -> OpenedCheckpoint:
    """The document of a folder, read; a folder at a URL is copied to this machine first, see `local_folder`.

    `ConfigError` where there is no checkpoint, `InputError` where it is damaged.
    """
    root = Path(local_folder(folder))
    if stable_diffusion.is_stable(root):
        return OpenedCheckpoint(root, stable_diffusion.stable_document(root))
    if not (root / "raygen.json").is_file():
        raise ConfigError(f"{root}: no checkpoint here (raygen.json is missing)")
    try:
        data = (root / "raygen.json").read_bytes()
        # Before the check sum is compared: another version may have another way to write it.
        if (found := read_record(data, str(root / "raygen.json")).get("format")) != FORMAT:
            raise ConfigError(f"{root}: checkpoint format {found!r}, this version reads {FORMAT}")
        document = open_record(data, str(root / "raygen.json"))
    except (OSError, IntegrityError) as error:
        raise InputError(str(error), reason="checkpoint") from error
    if not isinstance(document.get("model", {}), dict):
        raise InputError(f"{root / 'raygen.json'}: `model` is not a group of keys", reason="checkpoint")
    return OpenedCheckpoint(root, document)


def open_model(folder: str | Path) -> OpenedCheckpoint:
    """`open_checkpoint` of a folder with a model; `ConfigError` where it holds only a first stage."""
    opened = open_checkpoint(folder)
    if "model" not in opened.document:
        raise ConfigError(f"{opened.root}: holds a first stage, not a model that can be sampled")
    return opened


def _modalities(opened: OpenedCheckpoint) -> frozenset[str]:
    family = family_in(opened)
    parts = {name: _modalities(part) for name, part in family.inside(opened).items()}
    return family.needs(family.parse(opened), parts)


def open_parts(config: Config) -> dict[str, OpenedCheckpoint]:
    """The trained models that a config is put together from, each of them an ldm."""
    opened = {name: open_model(folder) for name, folder in family_of(config).folders(config).items()}
    for part in opened.values():
        if (kind := part.document["model"].get("kind")) != ldm.FAMILY.kind:
            raise ConfigError(f"{part.root}: an expert or a base is an ldm, this is a {kind}")
    return opened


def kind_of(opened: OpenedCheckpoint) -> str:
    """The `kind` of the family of a folder, or its layout where other software wrote it."""
    return str(opened.document.get("layout", opened.document.get("model", {}).get("kind")))


def family_in(opened: OpenedCheckpoint) -> Family:
    """The family of the model in a folder; `InputError` (`checkpoint`) where it is none of ours."""
    family = FAMILIES.get(kind_of(opened))
    if family is None:
        raise InputError(f"{opened.root}: a {kind_of(opened)!r} is no family of ours", reason="checkpoint")
    return family


def schedule_in(opened: OpenedCheckpoint) -> NoiseSchedule:
    """The noise schedule of the model in a folder."""
    family = family_in(opened)
    return family.schedule(family.parse(opened), {name: schedule_in(p) for name, p in family.inside(opened).items()})
