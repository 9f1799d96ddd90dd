"""A checkpoint folder as a diffusers pipeline: the same pictures as `raygen generate` makes, without a job.

    from raygen import FacePipeline
    FacePipeline.from_pretrained("bundled")(masks=[mask], seed=3).images[0].save("face.png")

diffusers opens the same folders by `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True,
custom_pipeline=raygen.sampling.pipeline.__file__)`, which runs this file. Unconditional models also open as its own
`LDMPipeline`.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from PIL import Image

from raygen.core.config import parse
from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import ATTRIBUTES, CLASSES
from raygen.core.location import Location
from raygen.core.types import UInt8Array
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.base import Model
from raygen.models.config.sampler import SamplerConfig
from raygen.sampling.config import Guidance, SampleConfig
from raygen.sampling.worker import SampleWorker
from raygen.store.class_ids import class_ids
from raygen.store.fetched import local_folder
from raygen.store.images import encode_image, encode_mask, picture_column, to_rgb
from raygen.store.schemas import ATTRIBUTE_VALUES, CONDITIONS, cast

__all__ = ["FacePipeline"]


class FacePipeline(DiffusionPipeline):  # type: ignore[misc]
    """A checkpoint folder of any family, conditioned on masks, attributes, texts and hints.

    diffusers loads the scheduler. The model is loaded from the folder when it is first used; its UNet, first stage and
    branch are then the pipeline's `unet`, `vae` and `controlnet`.
    """

    def __init__(
        self, scheduler: Any, unet: Any = None, vae: Any = None, vqvae: Any = None, controlnet: Any = None
    ) -> None:
        """Parts other than the scheduler are ignored: diffusers passes those that model_index.json names."""
        super().__init__()
        self.register_modules(scheduler=scheduler, unet=None, vae=None, controlnet=None)
        self._model: Model | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> "FacePipeline":
        """The pipeline of a checkpoint folder, or of the bundled model (`bundled`); arguments as diffusers has them.

        `ConfigError` where there is no checkpoint; nothing is looked up on the hub.
        """
        kwargs.setdefault("low_cpu_mem_usage", False)  # else diffusers asks for `accelerate`, which is not used here
        shown = is_progress_bar_enabled()
        disable_progress_bar()  # a scheduler is all that diffusers loads here
        try:
            folder = local_folder(parse(Location, str(pretrained_model_name_or_path), "from_pretrained"))
            checkpoint_folder.open_checkpoint(folder)  # else diffusers would ask the hub for a model of this name
            pipeline: FacePipeline = super().from_pretrained(folder, **kwargs)
        finally:
            if shown:
                enable_progress_bar()
        return pipeline

    @property
    def model(self) -> Model:
        """The model of the folder; errors as for `checkpoint.load`."""
        if self._model is None:
            self._model = checkpoint.load(self.config["_name_or_path"])
            parts = {"unet": getattr(self._model, "unet", None), "controlnet": getattr(self._model, "branch", None)}
            self.register_modules(vae=self._model.first_stage.net, **parts)
        return self._model

    def to(self, *args: Any, **kwargs: Any) -> "FacePipeline":
        """As `DiffusionPipeline.to`, for the whole model."""
        self.model.to(*args, **kwargs)
        super().to(*args, **kwargs)
        return self

    def __call__(
        self,
        n: int | None = None,
        *,
        masks: Sequence[Any] | None = None,
        attributes: Sequence[Mapping[str, int]] | None = None,
        texts: Sequence[str] | None = None,
        hints: Sequence[Any] | None = None,
        sampler: str | SamplerConfig = "ddim",
        num_inference_steps: int = 50,
        guidance_scale: Guidance = 1.0,
        seed: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Pictures of `n` rows, or of as many as the conditions have.

        `masks`: class indices [H, W]; `attributes`: name -> -1, 1; `hints`: pictures; arrays or Pillow's. The
        noise of a row depends on `seed` and its index alone. Returns `ImagePipelineOutput`, Pillow pictures or (`np`)
        floats [n, H, W, 3] in 0..1. `ConfigError` for conditions of different numbers or that the model does not take,
        `InputError` for a row that cannot be made.
        """
        conditions = {"mask": masks, "attributes": attributes, "text": texts, "hint": hints}
        columns = {name: list(values) for name, values in conditions.items() if values is not None}
        count = {len(values) for values in columns.values()} | ({n} if n is not None else set())
        if len(count) > 1:
            raise ConfigError(f"conditions of different numbers: {sorted(count)}")
        if unknown := sorted(set(columns) - self.model.modalities):
            takes = sorted(self.model.modalities) or "no conditions"
            raise ConfigError(f"the model does not take {unknown}; it takes {takes}")
        rows = _rows(count.pop() if count else 1, columns)
        settings = {
            "checkpoint": str(self.config["_name_or_path"]),
            "sampler": {"name": sampler, "steps": num_inference_steps} if isinstance(sampler, str) else sampler,
            "guidance": guidance_scale,
            "seed": seed,
            "batch": rows.num_rows,
            "codec": "png",
            "device": self.device.type if self.device.type == "cuda" else "cpu",
        }
        config: SampleConfig = parse(SampleConfig, settings, "FacePipeline")
        samples = SampleWorker(config, model=self.model)(rows)["samples"].to_pylist()
        if bad := [row["error"] for row in samples if row["error"]]:
            raise InputError(bad[0].partition(": ")[2], reason=bad[0].partition(": ")[0])
        images: Any = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in samples]
        if output_type != "pil":
            images = np.stack([np.asarray(image) for image in images]) / np.float32(255)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _rows(n: int, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """CONDITIONS rows of the arguments of a call."""
    rows: dict[str, Any] = {
        "sample_id": [f"{i:06d}" for i in range(n)],
        "plan": ["pipeline"] * n,
        "seed": [0] * n,
    }
    if "mask" in columns:
        rows["mask"] = picture_column([encode_mask(_mask(mask)) for mask in columns["mask"]])
    if "hint" in columns:
        hints = (
            hint if isinstance(hint, Image.Image) else Image.fromarray(np.asarray(hint)) for hint in columns["hint"]
        )
        rows["hint"] = picture_column([encode_image(np.asarray(to_rgb(hint)), "png") for hint in hints])
    if "text" in columns:
        rows["text"] = list(columns["text"])
    if "attributes" in columns:
        if unknown := sorted({name for values in columns["attributes"] for name in values} - set(ATTRIBUTES)):
            raise ConfigError(f"no attribute {unknown[0]!r}; there are {', '.join(ATTRIBUTES)}")
        for name, value in (item for values in columns["attributes"] for item in values.items()):
            if isinstance(value, bool | np.bool_) or value not in (-1, 0, 1):
                raise ConfigError(f"attribute {name} is {value!r}; 1 is yes, -1 is no, 0 is not known")
        named = [{name: int(values.get(name, 0)) for name in ATTRIBUTES} for values in columns["attributes"]]
        rows["attributes"] = pa.array(named, ATTRIBUTE_VALUES)
    return cast(pa.table(rows), CONDITIONS)


def _mask(mask: Any) -> UInt8Array:
    """Class indices uint8 [H, W] of an array or a picture, whose palette is understood as that of a file."""
    if isinstance(mask, Image.Image):
        return class_ids(mask)
    array = np.asarray(mask)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ConfigError(f"a mask has class indices, whole numbers [H, W], not {array.dtype} {list(array.shape)}")
    if array.size and not 0 <= array.min() <= array.max() < len(CLASSES):
        raise ConfigError(f"a mask has the labels {array.min()} to {array.max()}; there are 0 to {len(CLASSES) - 1}")
    return array.astype(np.uint8)
