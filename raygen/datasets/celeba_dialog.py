"""CelebA-Dialog (HQ): the faces of CelebA-HQ with captions, which named recipes join from sentences."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field

from raygen.core.errors import ConfigError, InputError
from raygen.core.location import RelativeLocation
from raygen.datasets.annotations import RepeatedKey, number_of, parse_json
from raygen.datasets.celebamask import CelebAFiles
from raygen.datasets.files import Files

__all__ = ["RECIPES", "CelebADialog", "Recipe", "captions_of"]


Recipe = Literal["overall", "beard_and_age", "all_attributes", "Bangs", "Eyeglasses", "No_Beard", "Smiling", "Young"]

_ASPECTS: Final = ("Bangs", "Eyeglasses", "No_Beard", "Smiling", "Young")

#: Recipe -> the attribute captions that it joins, in order. `beard_and_age` leaves out bangs, glasses and smiling,
#: which masks show: a model that gets them twice learns to ignore the text (Collaborative Diffusion).
RECIPES: Final[Mapping[str, tuple[str, ...]]] = {
    "overall": (),
    "beard_and_age": ("No_Beard", "Young"),
    "all_attributes": _ASPECTS,
    **{name: (name,) for name in _ASPECTS},
}
CAPTION_FILES: Final = (
    "text/captions_hq.json",
    "captions_hq.json",
    "text/captions_hq_beard_and_age_2022-08-19.json",
    "captions_hq_beard_and_age_2022-08-19.json",
)


def captions_of(entry: Any, recipe: str) -> str | None:
    """The caption of an entry of the captions file by `recipe`; None where the entry lacks one of its sentences.

    `InputError` (`caption`) where the entry has another structure.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("attribute_wise_captions", {}), dict):
        raise InputError("the entry is not a group of captions", reason="caption")
    for group in (entry, entry.get("attribute_wise_captions")):
        if isinstance(group, RepeatedKey):
            raise InputError(f"{group.key!r} is there twice", reason="caption")
    if recipe == "overall":
        return _sentence(entry.get("overall_caption"))
    if recipe == "beard_and_age" and "Beard_and_Age" in entry:
        return _sentence(entry["Beard_and_Age"])
    aspects = entry.get("attribute_wise_captions", {})
    sentences = [_sentence(aspects.get(name)) for name in RECIPES[recipe]]
    return None if None in sentences else " ".join(s for s in sentences if s)


def _sentence(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InputError(f"a caption is a {type(value).__name__}, not text", reason="caption")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"a caption is no valid text ({error.reason})", reason="caption") from error
    return " ".join(value.split()) or None


class CelebADialog(CelebAFiles):
    """CelebA-HQ faces with captions. A picture without an entry (5380 in the published file) has no texts."""

    kind: Literal["celeba_dialog"] = "celeba_dialog"
    captions: RelativeLocation | None = Field(
        None, description="JSON file of the captions; default: found by its usual names"
    )
    recipes: tuple[Recipe, ...] = Field(
        ("overall", "beard_and_age"),
        min_length=1,
        description="texts to store for each face: each recipe joins captions into one text",
    )

    def _texts(self, files: Files) -> Mapping[int, Mapping[str, str] | InputError]:
        source_and_text = files.optional_text(self.captions, CAPTION_FILES)
        if source_and_text is None:
            raise ConfigError(f"{self.root}: no captions ({', '.join(CAPTION_FILES)}); name the file in `captions`")
        source, text = source_and_text
        texts: dict[int, Mapping[str, str] | InputError] = {}
        recipes_with_captions = set[str]()
        for number, entry in _entries(source, text).items():
            try:
                captions = {name: captions_of(entry, name) for name in self.recipes}
            except InputError as error:
                texts[number] = InputError(f"{source}, picture {number}: {error.args[0]}", reason=error.reason)
                continue
            present: dict[str, str] = {name: caption for name, caption in captions.items() if caption is not None}
            recipes_with_captions |= present.keys()
            texts[number] = present
        if absent := sorted(set(self.recipes) - recipes_with_captions):
            raise ConfigError(f"{files.address(source)}: has no captions for the recipes {absent}")
        return texts


def _entries(source: str, text: str) -> dict[int, Any]:
    """Picture number -> entry of the captions file; `ConfigError` where it is not a JSON object keyed by picture."""
    try:
        document = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{source}: not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: not an object keyed by picture name")
    if isinstance(document, RepeatedKey):
        raise ConfigError(f"{source}: the key {document.key[:40]!r} is there twice")
    entries: dict[int, Any] = {}
    for key, entry in document.items():
        number = number_of(key)
        if number is None:
            raise ConfigError(f"{source}: the key {key[:40]!r} is not the name of a numbered picture")
        if number in entries:
            raise ConfigError(f"{source}: two keys name picture {number}, the second is {key[:40]!r}")
        entries[number] = entry
    return entries
