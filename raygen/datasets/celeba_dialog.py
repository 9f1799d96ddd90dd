"""CelebA-Dialog (HQ): the faces of CelebA-HQ with captions, put together by named recipes.

Knows the two forms of the captions file and what each recipe takes from it. Knows nothing of how captions become
tokens. Everything but the captions is read by celebamask.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field

from raygen.core.errors import ConfigError, InputError
from raygen.datasets.celebamask import CelebAFiles, number_of
from raygen.datasets.folder import Files

__all__ = ["RECIPES", "CelebADialog", "Recipe", "captions_of"]


Recipe = Literal["overall", "beard_and_age", "all_attributes", "Bangs", "Eyeglasses", "No_Beard", "Smiling", "Young"]

_ASPECTS: Final = ("Bangs", "Eyeglasses", "No_Beard", "Smiling", "Young")

#: Recipe -> the attribute captions it joins, in order. `beard_and_age` leaves out bangs, glasses and smiling because
#: a mask shows them already: a model that hears of them twice learns to ignore the text (Collaborative Diffusion).
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
    """What `recipe` makes of one entry of the captions file; None where the entry lacks a sentence it needs.

    `InputError` (`caption`) where the entry is not made of sentences.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("attribute_wise_captions", {}), dict):
        raise InputError("the entry is not a group of captions", reason="caption")
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
    return " ".join(value.split()) or None


class CelebADialog(CelebAFiles):
    """CelebA-HQ faces with captions. A picture without an entry (5380 in the published file) has no texts."""

    kind: Literal["celeba_dialog"] = "celeba_dialog"
    captions: str | None = Field(None, description="captions JSON; none looks for its usual names")
    recipes: tuple[Recipe, ...] = Field(("overall", "beard_and_age"), min_length=1, description="texts to keep")

    def _texts(self, files: Files) -> Mapping[int, Mapping[str, str] | InputError]:
        found = files.optional_text(self.captions, CAPTION_FILES)
        if found is None:
            raise ConfigError(f"{self.root}: no captions ({', '.join(CAPTION_FILES)}); name the file in `captions`")
        texts = {number: self._recipes(number, entry) for number, entry in _entries(*found).items()}
        made = {name for text in texts.values() if not isinstance(text, InputError) for name in text}
        if absent := sorted(set(self.recipes) - made):
            raise ConfigError(f"{files.address(found[0])}: has no captions for the recipes {absent}")
        return texts

    def _recipes(self, number: int, entry: Any) -> Mapping[str, str] | InputError:
        try:
            texts = {name: captions_of(entry, name) for name in self.recipes}
        except InputError as error:
            return InputError(f"picture {number}: {error.args[0]}", reason=error.reason)
        return {name: text for name, text in texts.items() if text is not None}


def _entries(source: str, text: str) -> dict[int, Any]:
    """Picture number -> its entry; `ConfigError` for what is not a JSON object keyed by picture."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: not an object keyed by picture name")
    numbered = {number_of(key): entry for key, entry in document.items()}
    if None in numbered:
        raise ConfigError(f"{source}: a key is not the name of a numbered picture")
    return {number: entry for number, entry in numbered.items() if number is not None}
