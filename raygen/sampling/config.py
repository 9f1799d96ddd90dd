"""Settings of sampling, edits, encoding and timing, and the checks that need no model: nothing here imports torch."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Final, Literal

import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator

from raygen.core.config import Config
from raygen.core.errors import ConfigError
from raygen.core.no_effect import without_effect
from raygen.core.types import PRECISION, Precision
from raygen.extractors.config import BundledNetworkConfig, LPIPSConfig, ParserConfig
from raygen.extractors.digests import network_digest
from raygen.models import checkpoint_folder
from raygen.models.config.compile import Compile
from raygen.models.config.conditions import MODALITIES, STYLE_COLUMNS
from raygen.models.config.mixing import AnyMixing
from raygen.models.config.sampler import SamplerConfig
from raygen.sampling.no_effect import EDITING
from raygen.store.images import Codec
from raygen.store.parquet import Slice, read_slice

__all__ = [
    "GUIDED",
    "EditJudgeConfig",
    "EncodeConfig",
    "Guidance",
    "GuidanceInterval",
    "GuidanceParametrization",
    "ImagicConfig",
    "ParseConfig",
    "SampleConfig",
    "TimingConfig",
    "check_guidance",
    "shares_model",
]


#: One weight for all conditions together, or a weight a modality; 1 is no guidance.
Guidance = float | dict[str, float]


#: `cfg`: e0 + w (e - e0), 1 is none. `cfg_minus_one`: e + s (e - e0), 0 is none; s = w - 1.
GuidanceParametrization = Literal["cfg", "cfg_minus_one"]


def _check_interval(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] < value[1] <= 1:
        raise ValueError("must be [low, high] with 0 <= low < high <= 1, parts of the steps from the noisy end")
    return value


#: The part [low, high) of the steps that is guided, counted from the noisy end (Kynkäänniemi et al. 2024).
GuidanceInterval = Annotated[tuple[float, float], AfterValidator(_check_interval)]
GUIDED: Final = (
    "part [low, high) of the steps that is guided, counted from the noisy end; the others are one evaluation of the "
    "network each"
)

#: Description of the setting `ignore` of jobs that sample.
IGNORE: Final = (
    "conditions of the rows that the model may leave unread, such as [style]; any other condition that it cannot read "
    "is an error"
)


class SampleConfig(Config):
    """Everything that a picture depends on except its row."""

    checkpoint: str
    sampler: SamplerConfig = Field(default_factory=SamplerConfig)
    guidance: Guidance = 1.0
    guidance_parametrization: GuidanceParametrization = "cfg"
    negative_keeps: tuple[str, ...] = ()
    guidance_interval: GuidanceInterval = Field((0.0, 1.0), description=GUIDED)
    mixing: AnyMixing | None = Field(None, description="of the experts of a collaboration; none is `paper`")
    use_conditions: tuple[str, ...] | None = None
    missing: Literal["null", "quarantine"] = "null"
    influence_steps: int = Field(0, ge=0, le=1000)
    seed: int = Field(0, ge=0)
    noise: Literal["sample", "group"] = Field("sample", description="noise schedule of the forward process")
    attempt: int = Field(0, ge=0)
    batch: int = Field(32, ge=1, le=4096)
    decode_batch: int = Field(16, ge=1, le=4096)
    codec: Codec = "webp"
    precision: Precision = "float32"
    compile: Compile = "off"
    cuda_graph: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    run_id: str = ""


class EncodeConfig(Config):
    """Which first stage, and whether mirrored pictures are encoded too."""

    checkpoint: str
    horizontal_flips: bool = True
    batch: int = Field(32, ge=1, le=4096, description="pictures at once, mirrored ones counted")
    precision: Precision = Field("float32", description=PRECISION)
    device: Literal["auto", "cpu", "cuda"] = "auto"


#: Description of the setting `landmarks` of jobs that write FACES or SAMPLES.
LANDMARKS: Final = (
    "also store the five landmarks of each face, which exports align by: from its mask, or refined by a landmark "
    "network, chosen by its `kind`; default none"
)


class ParseConfig(Config):
    """Which parser makes masks, and of which faces."""

    parser: ParserConfig
    replace: bool = False
    min_confidence: float = 0.0


class EditJudgeConfig(Config):
    """The networks that measure how much an edit changed, and how similar it is to the input."""

    parser: ParserConfig | None = Field(
        default_factory=BundledNetworkConfig,
        description="face parser that compares the edited picture with the target mask",
    )
    classifier: BundledNetworkConfig | None = Field(
        default_factory=BundledNetworkConfig,
        description="classifier that compares the edited picture with the target attributes",
    )
    lpips: LPIPSConfig | None = Field(
        None, description="LPIPS network: similarity to the original is 1 - LPIPS in place of SSIM"
    )

    def digests(self) -> dict[str, str]:
        """The sha256 of every network, by its purpose."""
        parts = {"parser": self.parser, "classifier": self.classifier, "lpips": self.lpips}
        return {name: network_digest(part, name) for name, part in parts.items() if part is not None}


class ImagicConfig(Config):
    """Steps and learning rates. The defaults are those of the released scripts, for models of 400 M parameters."""

    embedding_steps: int = Field(500, ge=0, description="optimisation steps of the embedding")
    embedding_lr: float = Field(1e-3, gt=0, description="learning rate of the embedding")
    tuning_steps: int = Field(1000, ge=0, description="fine-tuning steps of the model")
    tuning_lr: float = Field(1e-6, gt=0, description="learning rate of the model")
    batch: int = Field(1, ge=1, le=256, description="noise samples per step and edit")
    tuning: Literal["full", "low_rank"] = Field(
        "full",
        description="what is tuned. full: all weights, one edit at a time; low_rank: low-rank weights beside them, for "
        "all edits of a batch at once, which need a larger tuning_lr",
    )
    rank: int = Field(8, ge=1, le=256, description="low_rank only: rank of the weights")

    @model_validator(mode="after")
    def _rank_is_read(self) -> "ImagicConfig":
        if problem := without_effect(self, EDITING):
            raise ValueError(problem)
        return self


class TimingConfig(Config):
    """How many pictures and rounds are timed."""

    pictures: int = Field(
        32, ge=1, le=4096, description="pictures that are timed at once; at most the batch of the sweep"
    )
    rounds: int = Field(3, ge=1, le=100, description="number of timed rounds, after one round of warm-up")


def check_guidance(
    modalities: Collection[str],
    guidance: Guidance,
    parametrization: GuidanceParametrization = "cfg",
    against: Collection[str] = (),
) -> None:
    """`ConfigError` where a model that takes the conditions `modalities` cannot be guided so."""
    takes = f"the model takes {', '.join(sorted(modalities)) or 'no conditions'}"
    if unknown := sorted(set(against) - set(modalities)):
        raise ConfigError(f"negative_keeps: {', '.join(unknown)}: {takes}")
    if isinstance(guidance, Mapping):
        if unknown := sorted(set(guidance) - set(modalities)):
            raise ConfigError(f"guidance: {', '.join(unknown)}: {takes}")
        if parametrization != "cfg":
            raise ConfigError(f"guidance: a weight per condition has the parametrization cfg, not {parametrization}")
    elif not modalities and guidance != (1.0 if parametrization == "cfg" else 0.0):
        raise ConfigError(f"guidance: {guidance:g} has no effect: {takes}; leave it out")


def conditions_in(rows: Sequence[Slice]) -> frozenset[str]:
    """The conditions that rows of CONDITIONS have; those of the first file are looked at."""
    columns = {name: name for name in MODALITIES} | {STYLE_COLUMNS[0]: "style"}
    # Of pictures one small field is enough to see whether they are there.
    light = [f"{name}.path" if name in ("mask", "hint") else name for name in columns]
    table = read_slice(rows[0], light) if rows else pa.table({})
    return frozenset(columns[name] for name in table.column_names if table[name].null_count < table.num_rows)


def _without_rows(rows: Sequence[Slice], config: SampleConfig, reads: Collection[str]) -> str:
    """What settings of a config ask of rows that no row has; empty where there is nothing."""

    def absent(names: Collection[str]) -> list[str]:
        left = set(names)
        for piece in rows:  # the first file is enough, as a rule
            left -= conditions_in([piece]) if left else set()
        return sorted(left)

    if isinstance(config.guidance, Mapping):
        if missing := absent(set(config.guidance) & set(reads)):
            return f"guidance: {', '.join(missing)}: no row has it, so that it has no effect; leave it out"
    elif config.guidance != (1.0 if config.guidance_parametrization == "cfg" else 0.0):
        used = set(reads) if config.use_conditions is None else set(reads) & set(config.use_conditions)
        if used and len(absent(used)) == len(used):
            names = " or ".join(sorted(used))
            return f"guidance: {config.guidance:g} has no effect: no row has {names}; leave it out"
    groups = (read_slice(piece, ["group_id"]) for piece in rows if config.noise == "group")
    if config.noise == "group" and all(t["group_id"].null_count == t.num_rows for t in groups if t.num_columns):
        return "noise: group has no effect: no row has a group_id; leave it out"
    return ""


def check_conditions(
    rows: Sequence[Slice], config: SampleConfig, ignore: Collection[str], *, references: bool
) -> tuple[str, ...]:
    """Remarks for the user; `ConfigError` where rows have a condition that the model cannot read, not in `ignore`.

    A mixing that the model cannot have is told first, because it is often another model that was meant.

    A model that does not read a condition makes pictures without it, and nothing about these pictures would tell:
    identities whose looks change, edits that change nothing. With `use_conditions` the choice was made. `references`:
    whether the faces that styles are taken from are known.
    """
    if config.mixing is not None:
        checkpoint_folder.check_mixing(config.checkpoint, config.mixing)
    reads, present = checkpoint_folder.modalities(config.checkpoint), conditions_in(rows)
    if "style" in reads & present and not references:
        raise ConfigError("references: the rows take styles from faces; name the folder of their ingest run")
    if problem := _without_rows(rows, config, reads):
        raise ConfigError(problem)
    unread = sorted(present - reads - set(ignore)) if config.use_conditions is None else []
    if unread:
        names, them = ", ".join(unread), "it" if len(unread) == 1 else "them"
        raise ConfigError(
            f"checkpoint: the rows have {names}, and this model reads {', '.join(sorted(reads)) or 'no conditions'}. "
            f"Use a model that reads {names}, plan rows without {them}, or accept pictures that do not depend on "
            f"{them} with ignore=[{', '.join(sorted({*ignore, *unread}))}]"
        )
    ignored = sorted((present - reads) & set(ignore))
    return (f"the pictures do not depend on {', '.join(ignored)} of the rows (`ignore`)",) if ignored else ()


def shares_model(a: SampleConfig, b: SampleConfig) -> bool:
    """Whether both can use one loaded model."""
    return all(
        getattr(a, name) == getattr(b, name)
        for name in ("checkpoint", "precision", "compile", "cuda_graph", "device", "mixing")
    )
