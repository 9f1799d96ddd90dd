"""CelebA-Dialog: what each recipe says of a face, both forms of the captions file, and its damage."""

import json

import pytest
from PIL import Image

from raygen.core.errors import ConfigError, InputError
from raygen.datasets.celeba_dialog import RECIPES, CelebADialog, captions_of
from raygen.store.schemas import texts_by_name

ENTRY = {
    "attribute_wise_captions": {
        "Bangs": "She has long bangs.",
        "Eyeglasses": "There are no eyeglasses.",
        "No_Beard": "Her face is  clean.",
        "Smiling": "She smiles happily.",
        "Young": "She is in her thirties. ",
    },
    "overall_caption": "This woman smiles and has long bangs.",
}


def tree(root, captions, name="text/captions_hq.json", pictures=(0, 1)):
    (root / "image").mkdir()
    for number in pictures:
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / f"image/{number}.jpg")
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(captions if isinstance(captions, str) else json.dumps(captions))


def texts(dataset):
    loaded = dataset.load(dataset.listing())
    assert loaded["error"].to_pylist() == [None] * loaded.num_rows
    return [None if row is None else texts_by_name(row) for row in loaded["texts"].to_pylist()]


def test_recipes_say_what_their_names_say():
    assert captions_of(ENTRY, "overall") == "This woman smiles and has long bangs."
    assert captions_of(ENTRY, "Smiling") == "She smiles happily."
    assert captions_of(ENTRY, "all_attributes") == (
        "She has long bangs. There are no eyeglasses. Her face is clean. She smiles happily. She is in her thirties."
    )


def test_beard_and_age_leaves_out_what_the_mask_shows():
    text = captions_of(ENTRY, "beard_and_age")
    assert text == "Her face is clean. She is in her thirties."
    for shown in ("bangs", "glasses", "smil"):
        assert shown not in text


def test_every_recipe_works_on_the_published_form(tmp_path):
    tree(tmp_path, {"0.jpg": ENTRY, "1.jpg": ENTRY, "77.jpg": ENTRY})
    found = texts(CelebADialog(root=str(tmp_path), recipes=tuple(RECIPES)))
    assert [set(row) for row in found] == [set(RECIPES)] * 2


def test_a_picture_without_an_entry_has_no_texts_and_is_kept(tmp_path):
    tree(tmp_path, {"0.jpg": ENTRY}, pictures=(0, 5380))
    dataset = CelebADialog(root=str(tmp_path))
    assert dataset.listing()["face_id"].to_pylist() == ["00000", "05380"]
    first, missing = texts(dataset)
    assert set(first) == {"overall", "beard_and_age"}
    assert missing is None


def test_captions_with_the_numbers_of_celeba_are_refused(tmp_path):
    """CelebA-Dialog has the same file for CelebA, where 000001.jpg is another face."""
    tree(tmp_path, {"1.jpg": ENTRY, "202599.jpg": ENTRY})
    with pytest.raises(ConfigError, match="texts: has a line for picture 202599, and CelebA-HQ ends at 29999"):
        CelebADialog(root=str(tmp_path)).listing()


def test_the_number_of_pictures_with_captions_is_said_where_some_have_none(tmp_path):
    tree(tmp_path, {"0.jpg": ENTRY}, pictures=(0, 1, 2))
    assert CelebADialog(root=str(tmp_path)).listing().schema.metadata == {b"note": b"texts: 1 of 3"}


def test_the_beard_and_age_form(tmp_path):
    captions = {"0.jpg": {"Beard_and_Age": "He has a beard. He is young."}, "1.jpg": {"Beard_and_Age": "No beard."}}
    tree(tmp_path, captions, name="captions_hq_beard_and_age_2022-08-19.json")
    found = texts(CelebADialog(root=str(tmp_path), recipes=("beard_and_age",)))
    assert found == [{"beard_and_age": "He has a beard. He is young."}, {"beard_and_age": "No beard."}]
    with pytest.raises(ConfigError, match=r"no captions for the recipes \['overall'\]"):
        CelebADialog(root=str(tmp_path)).listing()


def test_an_entry_without_one_sentence_lacks_only_the_recipes_that_need_it(tmp_path):
    partial = {"attribute_wise_captions": {"Young": "He is young."}, "overall_caption": "A man."}
    tree(tmp_path, {"0.jpg": ENTRY, "1.jpg": partial})
    found = texts(CelebADialog(root=str(tmp_path), recipes=("overall", "beard_and_age", "Young")))
    assert found[1] == {"overall": "A man.", "Young": "He is young."}


@pytest.mark.parametrize(
    "entry",
    [
        "text",
        {"overall_caption": 3},
        {"attribute_wise_captions": ["x"]},
        None,
        {**ENTRY, "overall_caption": "half a pair \ud83d"},
    ],
)
def test_a_damaged_entry_costs_its_own_row(tmp_path, entry):
    tree(tmp_path, {"0.jpg": ENTRY, "1.jpg": entry})
    dataset = CelebADialog(root=str(tmp_path))
    first, second = dataset.load(dataset.listing())["error"].to_pylist()
    assert first is None
    assert second.startswith(f"caption: {tmp_path}/image/1.jpg: text/captions_hq.json, picture 1: ")
    with pytest.raises(InputError):
        captions_of(entry, "overall" if entry != {"attribute_wise_captions": ["x"]} else "Young")


def test_a_caption_that_is_there_twice_costs_its_own_row(tmp_path):
    entry = json.dumps(ENTRY)
    tree(tmp_path, f'{{"0.jpg": {entry}, "1.jpg": {entry[:-1]}, "overall_caption": "another"}}}}')
    dataset = CelebADialog(root=str(tmp_path))
    first, second = dataset.load(dataset.listing())["error"].to_pylist()
    assert first is None
    assert second.endswith("text/captions_hq.json, picture 1: 'overall_caption' is there twice")


@pytest.mark.parametrize("keys", [("0.jpg", "0.jpg"), ("0.jpg", "00000.jpg")])
def test_two_entries_of_one_picture_are_refused(tmp_path, keys):
    tree(tmp_path, "{" + ", ".join(f'"{key}": {json.dumps(ENTRY)}' for key in keys) + "}")
    with pytest.raises(
        ConfigError, match=r"captions_hq\.json: (the key '0\.jpg' is there twice|two keys name picture 0)"
    ):
        CelebADialog(root=str(tmp_path)).listing()


@pytest.mark.parametrize("content", ["{", "[1]", '{"face.jpg": {}}', "[" * 100_000])
def test_a_damaged_file_is_a_configuration_error_that_names_it(tmp_path, content):
    tree(tmp_path, content)
    with pytest.raises(ConfigError, match=r"captions_hq\.json"):
        CelebADialog(root=str(tmp_path)).listing()


def test_missing_captions_are_a_configuration_error(tmp_path):
    tree(tmp_path, {"0.jpg": ENTRY}, name="elsewhere.json")
    with pytest.raises(ConfigError, match=r"captions_hq\.json"):
        CelebADialog(root=str(tmp_path)).listing()
    assert texts(CelebADialog(root=str(tmp_path), captions="elsewhere.json"))[0]["overall"] == ENTRY["overall_caption"]
    with pytest.raises(ConfigError, match=r"absent\.json: no such file"):
        CelebADialog(root=str(tmp_path), captions="absent.json").listing()
