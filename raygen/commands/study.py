"""`raygen study`: SAMPLES of several methods -> pages on which people choose between their pictures.

    out/form-01.html ...   a page for each form; what raters get is this folder
    out/pictures/          pictures under names that say nothing
    KEY                    which method is where; `raygen study-results` reads it

Needs no torch.
"""

import re
from typing import Literal

from pydantic import Field, model_validator

from raygen.commands.base import Estimate, Job, ProgressCallback, Result
from raygen.core.errors import ConfigError
from raygen.core.location import Location
from raygen.store.filesystem import FileStore
from raygen.study.build import Page, common_rows, content_of, write_study
from raygen.study.design import Form, Layout, design

__all__ = ["JOB", "StudyJob"]


class StudyJob(Job):
    """SAMPLES of several methods -> the pages of a preference study."""

    kind: Literal["study"] = "study"
    methods: dict[str, Location] = Field(
        ...,
        min_length=2,
        max_length=9,
        description="folders of generate, edit or select runs of the same conditions, by the name of the method",
    )
    question: str = Field(..., min_length=1, max_length=300, description="what raters are asked, above the pictures")
    instructions: str = Field("", max_length=4000, description="what raters read before they begin")
    layout: Layout = Field(
        "pairs", description="pictures of a trial: `pairs` of methods, or `rows` with one picture of each method"
    )
    show: tuple[Literal["mask", "attributes", "text"], ...] = Field(
        (), description="parts of the condition that are shown above the pictures"
    )
    trials: int = Field(60, ge=1, le=2000, description="different trials of a form")
    checks: int = Field(
        6, ge=0, le=200, description="trials of a form that come once more, with no method at its place"
    )
    forms: int = Field(1, ge=1, le=99, description="pages, each with an order and sides of its own; one for each rater")
    shared: bool = Field(
        True, description="all forms have the same trials, which agreement needs; false gives each form its own rows"
    )
    ties: bool = Field(False, description="raters may answer that there is no difference")
    size: int | None = Field(
        None, ge=16, le=2048, description="side of the pictures in pixels; default: the smallest of the methods"
    )
    embed: bool = Field(
        False, description="put the pictures into the pages, so that one file is sent to a rater or to a phone"
    )
    seed: int = Field(0, ge=0, description="seed of rows, order, sides and names of files")
    key: Location | None = Field(
        None, description="file that says which method is where, not in `out`; default: `out` with .key.json"
    )

    @model_validator(mode="after")
    def _check_names(self) -> "StudyJob":
        for name in self.methods:
            if not re.fullmatch(r"[^\s|/][^|/]{0,63}", name):
                raise ValueError(f"methods: {name[:80]!r} is no name: 1 to 64 characters without / and |")
        if len(set(self.methods.values())) < len(self.methods):
            raise ValueError("methods: two names have the same folder")
        place, out = self.key_file.rstrip("/"), self.out.rstrip("/")
        if place == out or place.startswith(f"{out}/"):
            raise ValueError("key: lies in `out`, which raters get; choose a file elsewhere")
        return self

    @property
    def key_file(self) -> str:
        """Where the key is written."""
        return self.key or f"{self.out.rstrip('/')}.key.json"

    def check(self) -> None:
        """See `Job.check`: files in `out` that raters would get too."""
        names = FileStore(self.out).names("")
        if any(not re.fullmatch(r"form-\d+\.html|pictures", name) for name in names):
            raise ConfigError(f"{self.out}: holds other files, which raters would get too; choose an empty folder")

    def run(self, report: ProgressCallback) -> Result:
        """Write the pages, the pictures and the key."""
        self.check()
        forms = self._design()
        page = Page(self.question, self.instructions, self.show, self.ties, self.size, self.embed)
        key = write_study(self.methods, forms, page, out=self.out, key=self.key_file, seed=self.seed)
        return Result(self.out, {**self._facts(forms), "study": key["study"], "key": f"{self.key_file} (keep it)"})

    def estimate(self) -> Estimate:
        """Number of trials and rows; the pictures are not read."""
        self.check()
        forms = self._design()
        rows = len({trial.sample_id for form in forms for trial in form.trials})
        notes = tuple(f"{name}: {value}" for name, value in self._facts(forms).items())
        return Estimate(rows, 0, 0, 0, 0.0, notes)

    def _design(self) -> list[Form]:
        return design(
            list(self.methods),
            common_rows(self.methods),
            layout=self.layout,
            trials=self.trials,
            checks=self.checks,
            forms=self.forms,
            shared=self.shared,
            seed=self.seed,
            content=content_of(self.methods),
        )

    def _facts(self, forms: list[Form]) -> dict[str, object]:
        return {"forms": len(forms), "trials of a form": f"{self.trials} and {self.checks} repeated as checks"}


JOB = StudyJob
