"""`raygen train`: FACES (and LATENTS) -> a checkpoint folder.

    out/model_index.json …     the checkpoint, after the last step
    out/training/step-…/       training states, to continue from
    out/training/history.jsonl one line per record; also in tensorboard/
    out/training/sheets/       sample pictures during the training
    out/training/result.json   run id, steps, loss and other facts, after the last step
    out/training/MANIFEST.json sha256 of every file in training/, written last

Every rank loads the data and trains; rank 0 writes the files, see `raygen.commands.train_rank`.
"""

import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import pyarrow.compute as pc
from pydantic import AfterValidator, Field

from raygen.commands.base import Estimate, Job, ProgressCallback, Result, parallel_workers
from raygen.commands.counted import LARGEST_TIMED
from raygen.commands.inputs import check_conditions_of_faces, check_splits, open_inputs
from raygen.core.errors import ConfigError, RaygenError
from raygen.core.hashing import canonical, digest
from raygen.core.location import LocalLocation, Location
from raygen.models import checkpoint_folder
from raygen.store.filesystem import FileStore
from raygen.store.run_store import RunStore, open_input
from raygen.tracking.base import LOG, LogTo
from raygen.training.cleanup import alone
from raygen.training.config.recipe import TrainRecipe, folders_of, is_denoiser, required_fields, text_config_of

if TYPE_CHECKING:
    from raygen.models.text import Tokenizer
    from raygen.training.data import TrainingData
    from raygen.training.losses import Objective

__all__ = ["JOB", "TrainJob", "TrainRecipe"]


#: Changes where the files of prepared training data have another form.
DATA_FORMAT: Final = 1
#: A dry run reads no more faces than one batch, or this number.
LEAST_TIMED: Final = 64


class TrainJob(TrainRecipe, Job):
    """FACES -> a checkpoint."""

    kind: Literal["train"] = "train"

    out: Annotated[Location, AfterValidator(lambda text: text.removeprefix("file://"))] = Field(
        ..., description="folder or URL that the checkpoint is written to"
    )

    cache: LocalLocation | None = Field(
        None,
        description="folder on a local disk for the prepared training data, which trainings with the same data share; "
        "default: in `out`, or for a URL in the cache folder, until the training ends",
    )

    log: LogTo = Field(("tensorboard",), description=LOG)

    def settings(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """See `Job.settings`; where the prepared data is, what ranks share and who watches does not matter."""
        settings = super().settings({"cache", "log", *exclude})
        settings["training"] = {k: v for k, v in settings["training"].items() if k != "sharding"}
        return settings

    def document(self) -> dict[str, Any]:
        """See `Job.document`."""
        return {**super().document(), "cache": self.cache, "log": list(self.log)}

    def run(self, report: ProgressCallback) -> Result:
        """Train to the end, continuing from the last training state in `out`."""
        for error in self.missing_inputs():
            raise error
        from raygen.training.outputs import Outputs

        outputs = Outputs(self.out)
        if outputs.result() is None:  # one that has ended reads no data
            self.check()
        from raygen.commands.train_rank import train_rank
        from raygen.training.logger import followed

        outputs.store.require()
        began = time.time()
        with alone(outputs.folder, self.out), followed(outputs.tail, report, self.training) as waits:
            outputs.clear()
            if self.resources.runner == "ray":
                from raygen.execution.ray.train import run_ranks

                run_ranks(partial(train_rank, self), self.resources, self.out, waits, outputs.work)
            else:
                for _ in train_rank(self, 0, 1):
                    pass
            facts = outputs.result()
            assert facts is not None
            outputs.seal(facts["run_id"])
        outputs.forget()
        return Result(self.out, {**facts, "seconds": round(time.time() - began, 1)})

    def estimate(self) -> Estimate:
        """Parameters, and the time extrapolated from a few steps; nothing is written.

        Parameters are counted without allocating the model. Where an input is not there yet, or a model is too large
        for this machine, the time is not estimated, and a note says why. Raises the errors of `run` otherwise.
        """
        import torch

        from raygen.commands.train_rank import check_states, is_finished, pick_device, run_id_of
        from raygen.training.networks import count_parameters
        from raygen.training.outputs import Outputs
        from raygen.training.trainer import Trainer

        notes = [f"missing: {error}" for error in self.missing_inputs()]
        if complete := not notes:
            self.check()
        parameters, rows = 0, 0 if notes else self._count_rows()
        try:
            counts = count_parameters(self.model, self.first_stage)
            parameters = sum(counts.values())
            notes += [f"{name}: {number:,} parameters" for name, number in counts.items()]
        except RaygenError as error:
            notes.append(f"parameters are not counted: {error}")
        size = parameters * (2 if self.save_dtype == "float16" else 4)
        if max(parameters, self._frozen()) > LARGEST_TIMED and not torch.cuda.is_available():
            notes.append(self._counted())
            notes.append("time is not estimated: the model is too large to time a step on a CPU")
            return Estimate(rows, 0, 0, size, 0.0, tuple(notes))
        try:
            tokenizer = self.tokenizer()
            arrays = self.arrays(tokenizer, limit=max(self.training.batch, LEAST_TIMED))
            objective = self.objective(tokenizer)
            if is_finished(Outputs(self.out), run_id_of(self, tokenizer)):
                return Estimate(rows, 0, 0, size, 0.0, (*notes, "it has ended already, and a run changes nothing"))
        except RaygenError as error:
            if complete:
                raise
            return Estimate(rows, 0, 0, size, 0.0, (*notes, f"time is not estimated: {error}"))
        trainer = Trainer(objective, self.training, device=pick_device())
        check_states(Outputs(self.out), trainer)
        batch = trainer.batch(arrays, 0)
        trainer.update(batch, 0.0)  # the first step pays for initialisation
        began = time.perf_counter()
        for _ in range(3):
            trainer.update(batch, 0.0)
        step_s = (time.perf_counter() - began) / 3 / parallel_workers(self.resources)
        limits = (self.training.max_seconds, (self.training.steps or 1e12) * step_s)
        seconds = min(limit for limit in limits if limit is not None)
        notes.append(f"{rows:,} faces, batch {self.training.batch}, {1 / step_s:.2f} steps per second")
        return Estimate(rows, 0, 0, size, seconds, tuple(notes))

    def _frozen(self) -> int:
        """Parameters of a model that is put together from trained ones, these included; 0 for others."""
        from raygen.models.operations import UNCOUNTABLE, weightless

        if not folders_of(self.model):
            return 0
        try:
            return sum(parameter.numel() for parameter in weightless(self.model, None).parameters())
        except UNCOUNTABLE:
            return 0

    def _counted(self) -> str:
        """A note on the operations of the whole training."""
        from raygen.models.operations import UNCOUNTABLE, hours_text
        from raygen.training.operations import training_operations

        try:
            return hours_text(training_operations(self))
        except UNCOUNTABLE as error:
            return f"operations are not counted: {error}"

    def _count_rows(self) -> int:
        """Number of training faces, without reading any picture."""
        tables = open_input(self.faces)[0].tables("faces", ["split"])
        splits = (name for table in tables for name in table["split"].to_pylist())
        return sum(self.split is None or name == self.split for name in splits)

    def missing_inputs(self) -> Iterator[RaygenError]:
        """The error of each input that does not exist yet."""
        folders = [folder for folder in (self.first_stage, self.init) if folder is not None]
        opens: list[Callable[[], object]] = [
            *(partial(open_input, url) for url in (self.faces, self.latents) if url is not None),
            *(
                partial(checkpoint_folder.first_stage_config, folder)
                for folder in (*folders, *folders_of(self.model).values())
            ),
        ]
        for open_one in opens:
            try:
                open_one()
            except RaygenError as error:
                yield error

    def check(self) -> None:
        """See `Job.check`: inputs that are not there, or lack what the model trains on."""
        for error in self.missing_inputs():
            raise error
        FileStore(self.out).check_place()
        open_inputs(self.faces, "faces")
        for name, split in (("split", self.split), ("validation_split", self.validation_split)):
            if split is not None:
                check_splits(self.faces, [split], name)
        _, reads = required_fields(self.model, self.first_stage)
        splits = [self.split] if self.split else []
        check_conditions_of_faces(self.faces, reads, splits, key="model", caption=("caption", self.caption))
        if self.identity is not None:
            people = set[str]()
            for table in open_input(self.faces)[0].tables("faces", ["split", "identity_id"]):
                rows = table if self.split is None else table.filter(pc.equal(table["split"], self.split))
                people |= set(rows["identity_id"].unique().to_pylist()) - {None}
            self._check_people(len(people))
        if self.encoded and self.latents is not None:
            open_inputs(self.latents, "latents")

    def _check_people(self, count: int) -> None:
        if self.identity is not None and count > self.identity.identities:
            raise ConfigError(f"identity.identities: {self.faces} has {count:,} people; set at least this number")

    def tokenizer(self) -> "Tokenizer | None":
        """The tokenizer of a model that reads texts: of its experts, of `init`, or learned from the faces."""
        from raygen.models import checkpoint
        from raygen.models.text import tokenizer_of
        from raygen.training.loading import texts_of

        if folders := folders_of(self.model):
            tokenizers = (checkpoint.load_tokenizer(folder) for folder in folders.values())
            return next((tokenizer for tokenizer in tokenizers if tokenizer is not None), None)
        if self.init is not None:
            return checkpoint.load_tokenizer(self.init)

        def texts() -> Iterator[str]:
            for table in open_input(self.faces)[0].tables("faces", ["split", "texts"]):
                rows = table if self.split is None else table.filter(pc.equal(table["split"], self.split))
                yield from (text for text in texts_of(rows, self.caption).to_pylist() if text is not None)

        text = text_config_of(self.model)
        return None if text is None else tokenizer_of(text, texts)

    def arrays(self, tokenizer: "Tokenizer | None" = None, *, limit: int | None = None) -> "TrainingData":
        """The training data, in files below `cache`; or with `limit`, about so many faces of it, in memory.

        `ConfigError` where it has more identities than `identity.identities`, or latents without the mirrored ones that
        `training.horizontal_flip` asks for.
        """
        from raygen.training.prepared import prepare

        key, load = self._data(tokenizer)
        whole = limit is None or self.identity is not None  # all people are counted
        arrays = prepare(self.data_folder, key, load) if limit is None else load(None, None if whole else limit)
        self._check_people(arrays.identities)
        if self.encoded and self.training.horizontal_flip and not arrays.flipped.any():
            raise ConfigError(
                f"training.horizontal_flip: {self.latents} has no latents of mirrored pictures; encode with "
                "horizontal_flips=true, or set training.horizontal_flip=false"
            )
        return arrays

    @property
    def encoded(self) -> bool:
        """Whether it trains on latents that `raygen encode` made."""
        return self.latents is not None and is_denoiser(self.model)

    def _data(self, tokenizer: "Tokenizer | None") -> tuple[dict[str, Any], Callable[..., "TrainingData"]]:
        """All that the training data depends on, and a call that loads it: `load(folder, limit)`."""
        from raygen.training.loading import load_training_data

        faces, content = open_input(self.faces)
        size, modalities = required_fields(self.model, self.first_stage)
        pictures = (
            not self.encoded or "style" in modalities or (self.mask_aware is not None and self.mask_aware.decodes)
        )
        modalities = tuple(sorted({*modalities, *(["mask"] if self.mask_aware is not None else [])}))
        places = tuple([] if self.mask_aware is None else self.mask_aware.places)
        people = self.identity is not None
        columns = ["face_id", "split", "mask", "attributes", "texts", *places, *(["image"] if pictures else [])]
        columns += [*(["hint"] if "hint" in modalities else []), *(["identity_id"] if people else [])]
        options: dict[str, Any] = {"size": size, "modalities": modalities, "split": self.split}
        options |= {"caption": self.caption, "pictures": pictures, "places": places, "people": people}
        key = {"faces": content, "tokenizer": None if tokenizer is None else tokenizer.digest}
        latents: RunStore | None = None
        if self.encoded and self.latents is not None and self.first_stage is not None:
            latents, key["latents"] = open_input(self.latents)
            options |= {
                "autoencoder": checkpoint_folder.digest(self.first_stage),
                "mirrored": self.training.horizontal_flip,
            }

        def load(folder: Path | None, limit: int | None = None) -> "TrainingData":
            rows = None if latents is None else latents.tables("latents")
            tables = faces.tables("faces", columns)
            return load_training_data(tables, latents=rows, tokenize=tokenizer, folder=folder, limit=limit, **options)

        return {"format": DATA_FORMAT, **key, **options}, load

    def data_digest(self, tokenizer: "Tokenizer | None") -> str:
        """sha256 of all that the training data depends on; no picture is read."""
        return digest(canonical(self._data(tokenizer)[0]))

    @property
    def data_folder(self) -> Path:
        """Where the prepared training data is."""
        from raygen.training.outputs import Outputs

        return Path(self.cache or Outputs(self.out).work / ".data")

    def objective(self, tokenizer: "Tokenizer | None" = None) -> "Objective":
        """A new objective, with weights drawn from the training seed."""
        from raygen.training.networks import build_objective

        return build_objective(self, tokenizer)


JOB = TrainJob
