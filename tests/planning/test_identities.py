"""Identity plans: exact counts, what stays and what varies, nobody twice, the same rows however they are cut."""

import hashlib
import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import ATTRIBUTE_INDEX, ATTRIBUTES, CLASS_INDEX, CLASSES, AttributeName
from raygen.planning import Identities
from raygen.planning.identity_pool import FacePool, draw_donors
from raygen.store.images import decode_mask, encode_mask, picture
from raygen.store.lookup import InMemoryRows
from raygen.store.parquet import Slice, to_parquet
from raygen.store.schemas import FACES, cast

Rows = list[dict[str, object]]
MALE, YOUNG = ATTRIBUTE_INDEX["Male"], ATTRIBUTE_INDEX["Young"]


def people(persons: int = 40, pictures: int = 2, seed: int = 0) -> pa.Table:
    """Faces whose masks, pictures and attributes are chance; the first person has no eyes, the second no mask."""
    random = np.random.default_rng(seed)
    rows = []
    for who in range(persons):
        kept = random.choice([-1, 1], len(ATTRIBUTES))
        kept[[MALE, YOUNG]] = [(1, 1), (1, -1), (-1, 1), (-1, -1)][who % 4]
        for k in range(pictures):
            mask = np.arange(64, dtype=np.uint8).reshape(8, 8) % len(CLASSES)
            for name in random.choice(["hair", "hat", "eye_g", "ear_r", "neck_l"], 2, replace=False):
                mask[mask == CLASS_INDEX[name]] = 0
            if who == 0:
                mask[np.isin(mask, [CLASS_INDEX["l_eye"], CLASS_INDEX["r_eye"]])] = CLASS_INDEX["skin"]
            values = kept.copy()
            varied = [ATTRIBUTE_INDEX[name] for name in Identities(identities=1, pictures=1).vary.attributes]
            values[varied] = random.choice([-1, 1], len(varied))
            mask[7, 7] = k  # no two pictures of a person have one mask
            rows.append(
                {
                    "face_id": f"f{who:03d}.{k}",
                    "split": ("train", "test")[who % 2],
                    "image": picture(f"picture {who} {k}".encode()),
                    "mask": None if who == 1 else picture(encode_mask(mask)),
                    "attributes": tuple(values.tolist()),
                    "identity_id": f"p{who}",
                }
            )
    return cast(pa.Table.from_pylist(rows, FACES), FACES)


def planned(faces: pa.Table, pieces: int = 1, **fields: object) -> tuple[Rows, tuple[str, ...]]:
    """Rows of a plan, made of its listing in pieces, in any order."""
    config = Identities.model_validate(fields)
    chosen = config.choose([faces])
    by_id = {row["face_id"]: row for row in faces.to_pylist()}

    def filled(table: pa.Table) -> pa.Table:
        masks = [by_id[name]["mask"] for name in table["face_id"].to_pylist()]
        at = table.column_names.index("mask")
        return table.set_column(at, table.schema.field("mask"), pa.array(masks, FACES.field("mask").type))

    listing = filled(chosen.listing) if chosen.without_masks == "listing" else chosen.listing
    lookup = InMemoryRows(filled(chosen.donors) if chosen.without_masks == "donors" else chosen.donors)
    cuts = np.linspace(0, listing.num_rows, pieces + 1).astype(int)
    parts = [config.rows(listing.slice(a, b - a), lookup) for a, b in reversed(list(pairwise(cuts)))]
    return [row for part in reversed(parts) for row in part.to_pylist()], chosen.notes


def of(rows: Rows, name: str) -> Rows:
    return [row for row in rows if row["identity_id"] == name]


def owners(faces: pa.Table) -> dict[str, str]:
    return dict(zip(faces["face_id"].to_pylist(), faces["identity_id"].to_pylist(), strict=True))


def at(row: dict[str, object], name: str) -> int:
    return int(row["attributes"][name])  # type: ignore[index]


def names_of(struct: object) -> str:
    return str(struct["face_id"])  # type: ignore[index]


@pytest.mark.parametrize("balance", [[], ["Male"], ["male", "YOUNG"]])
@pytest.mark.parametrize("pictures", [1, 3, 40])
@pytest.mark.parametrize("identities", [1, 2, 3, 7, 16, 25])
def test_counts_add_up_exactly(identities: int, pictures: int, balance: list[str]) -> None:
    faces = people(33)
    rows, notes = planned(faces, identities=identities, pictures=pictures, balance=balance)
    assert len(rows) == identities * pictures
    assert [row["sample_id"] for row in rows] == [
        f"id-{n:06d}-{k:04d}" for n in range(identities) for k in range(pictures)
    ], "the rows of an identity lie together"
    assert set(Counter(row["identity_id"] for row in rows).values()) == {pictures}
    cells = 2 ** len(balance)
    shared = Counter(tuple(at(row, name) for name in ["Male", "Young"][: len(balance)]) for row in rows)
    counts = sorted(shared.values(), reverse=True) + [0] * (cells - len(shared))
    most, more = divmod(identities, cells)
    assert counts == [(most + (cell < more)) * pictures for cell in range(cells)]
    if balance:
        listed = ", ".join(["Male", "Young"][: len(balance)])
        assert f"{cells} cells of {listed} with {most} identities each" in notes[0]
        assert ("one more in" in notes[0]) == bool(more)
        assert notes[0].count(";") == max(more - 1, 0), "which cells have one more is said"


def test_nobody_is_there_twice_and_nobody_lends_to_themselves() -> None:
    faces = people(40)
    rows, _ = planned(faces, identities=30, pictures=6)
    who = owners(faces)
    references = {row["identity_id"]: who[str(row["source"])] for row in rows}
    assert len(set(references.values())) == 30, "no two identities are one person"
    assert not {"p0", "p1"} & set(references.values()), "without eyes or mask nobody is a reference"
    assert [row for row in rows if names_of(row["style_reference_a"]) != row["source"]] == []
    lenders = [(row["identity_id"], who[names_of(row["style_reference_b"])]) for row in rows]
    assert [one for one in lenders if references[one[0]] == one[1]] == []
    masks: dict[bytes, set[str]] = {}
    for face in faces.to_pylist():
        if face["mask"]:
            masks.setdefault(face["mask"]["bytes"], set()).add(who[face["face_id"]])
    for row in rows:
        assert who[names_of(row["style_reference_b"])] in masks[row["mask"]["bytes"]]  # type: ignore[index]
    for name in references:
        lent = [names_of(row["style_reference_b"]) for row in of(rows, str(name))]
        assert len(set(lent)) == 6, "nobody lends twice where there are enough"


def test_what_is_kept_stays_and_what_varies_comes_from_the_donor() -> None:
    faces = people(40)
    known = {row["face_id"]: row for row in faces.to_pylist()}
    config = Identities(identities=12, pictures=8)
    rows, _ = planned(faces, identities=12, pictures=8)
    for name in {row["identity_id"] for row in rows}:
        mine = of(rows, str(name))
        own = known[mine[0]["source"]]
        assert len({names_of(row["style_reference_a"]) for row in mine}) == 1
        assert all(row["style_parts"] == sorted(CLASS_INDEX[p] for p in config.vary.styles) for row in mine)
        assert not set(mine[0]["style_parts"]) & {CLASS_INDEX[p] for p in config.keep.styles}  # type: ignore[call-overload]
        assert all(row["style_mix"] == 1.0 and row["group_id"] == name for row in mine)
        for attribute in config.keep.attributes:
            assert {at(row, attribute) for row in mine} == {own["attributes"][attribute]}
        for row in mine:
            lender = known[names_of(row["style_reference_b"])]
            assert row["mask"] == lender["mask"], "one donor for all that varies, so that mask and labels agree"
            assert lender["attributes"]["Male"] == own["attributes"]["Male"]
            for attribute in config.vary.attributes:
                assert at(row, attribute) == lender["attributes"][attribute]
        assert len({row["mask"]["bytes"] for row in mine}) > 1  # type: ignore[index]
    assert len({at(row, "Smiling") for row in of(rows, "id-000000")}) == 2
    some, _ = planned(
        faces, identities=2, pictures=2, keep={"attributes": ["Male"]}, vary={"attributes": ["Smiling"]}, balance=[]
    )
    known_values = [[v for v in row["attributes"].values() if v] for row in some]  # type: ignore[attr-defined]
    assert {len(values) for values in known_values} == {2}, "in neither list: unknown"


def test_references_and_donors_are_named_by_content() -> None:
    faces = people(10)
    rows, _ = planned(faces, identities=3, pictures=2)
    wanted = {r["face_id"]: hashlib.sha256(r["image"]["bytes"]).hexdigest() for r in faces.to_pylist()}
    for row in rows:
        for column in ("style_reference_a", "style_reference_b"):
            assert row[column]["sha256"] == wanted[names_of(row[column])]  # type: ignore[index]


def test_rows_are_the_same_however_the_work_is_cut_and_the_faces_lie() -> None:
    faces = people(40)
    whole, _ = planned(faces, identities=21, pictures=5, balance=["Male"])
    order = np.random.default_rng(1).permutation(faces.num_rows)
    for pieces in (2, 5, 21):
        assert planned(faces.take(order), pieces, identities=21, pictures=5, balance=["Male"])[0] == whole
    other, _ = planned(faces, identities=21, pictures=5, balance=["Male"], seed=1)
    assert [row["source"] for row in other] != [row["source"] for row in whole]


def test_more_pictures_and_more_identities_keep_the_rows_that_are_there() -> None:
    faces = people(40)
    few, _ = planned(faces, identities=9, pictures=4, balance=["Male", "Young"])
    # More pictures than there are others of the same cell, so that donors come a second time.
    many, notes = planned(faces, identities=22, pictures=60, balance=["Male", "Young"])
    there = {row["sample_id"]: row for row in many}
    assert [there[row["sample_id"]] for row in few] == few
    assert "donors are used again" in notes[-1]
    lent = Counter(names_of(row["style_reference_b"]) for row in of(many, "id-000000"))
    assert max(lent.values()) - min(lent.values()) <= 1, "nobody lends a third time before all did twice"


def test_own_masks_stay_and_donors_have_what_varies() -> None:
    faces = people(40)
    varied = {"styles": ["hair", "hat"], "attributes": ["Blurry"]}
    fields = {"masks": "own", "keep": {"attributes": ["Male", "Smiling"]}, "vary": varied}
    rows, _ = planned(faces, identities=20, pictures=4, **fields)
    known = {row["face_id"]: row for row in faces.to_pylist()}

    def shows(name: object, part: str) -> bool:
        return bool((decode_mask(known[name]["mask"]["bytes"]) == CLASS_INDEX[part]).any())

    assert [row for row in rows if row["mask"] != known[row["source"]]["mask"]] == []
    seen = set()
    for row in rows:
        needed = {part for part in ("hair", "hat") if shows(row["source"], part)}
        seen.add(len(needed))
        if not needed:
            assert row["style_reference_b"] is None, "nothing to vary"
            assert row["style_parts"] is None
        else:
            assert all(shows(names_of(row["style_reference_b"]), part) for part in needed)
    assert len(seen) > 1


def test_identities_of_attributes_are_unlike_each_other() -> None:
    faces = people(40)
    kept: list[AttributeName] = ["Male", "Young", "Pale_Skin"]
    fields = {"identity_source": "attributes", "masks": "none", "keep": {"attributes": kept}, "pictures": 5}
    rows, _ = planned(faces, identities=8, **fields)
    vectors = {row["identity_id"]: tuple(at(row, name) for name in kept) for row in rows}
    assert len(set(vectors.values())) == 8, "there are no more than these"
    assert all(row["style_reference_a"] is None and row["mask"] is None for row in rows)
    with pytest.raises(ConfigError, match=r"need 9 references, .* have 8; .*with attributes that are taken"):
        planned(faces, identities=9, **fields)
    both, _ = planned(
        faces, identities=6, pictures=2, identity_source="both", keep={"attributes": kept}, balance=["Male"]
    )
    assert len({tuple(at(row, name) for name in kept) for row in both}) == 6
    assert all(row["style_reference_a"] and row["mask"] for row in both)


def test_nothing_to_borrow_is_a_plan_too() -> None:
    fields = {"masks": "own", "keep": {"attributes": []}, "vary": {"styles": [], "attributes": []}}
    rows, notes = planned(people(10), identities=2, pictures=3, **fields)
    assert [row["style_reference_b"] for row in rows] == [None] * 6
    assert [row["attributes"] for row in rows] == [None] * 6
    assert all(row["mask"] for row in rows)
    assert notes == ()


def test_faces_without_names_or_attributes_are_people_of_their_own() -> None:
    faces = people(12, pictures=1)
    for column in ("attributes", "identity_id"):
        i = faces.column_names.index(column)
        faces = faces.set_column(i, FACES.field(column), pa.nulls(faces.num_rows, FACES.field(column).type))
    rows, _ = planned(faces, identities=10, pictures=2)
    assert len({row["source"] for row in rows}) == 10
    assert {row["attributes"] for row in rows} == {None}
    with pytest.raises(ConfigError, match=r"the cell \(Male\), .* have 0; not taken: 10 without the attributes"):
        planned(faces, identities=2, pictures=2, balance=["Male"])


def test_a_bank_keeps_rare_groups() -> None:
    """Young men are three among thirty-three, and still lend as many of eight faces as anybody."""
    faces = people(40, pictures=1)
    faces = faces.take([who for who in range(40) if who % 4 or who < 12])
    config = Identities.model_validate({"identities": 4, "pictures": 3, "balance": ["Male", "Young"], "num_donors": 8})
    values = config.choose([faces]).donors["attributes"].to_pylist()
    assert sorted(Counter((v[MALE], v[YOUNG]) for v in values).items()) == [
        ((-1, -1), 2),
        ((-1, 1), 2),
        ((1, -1), 2),
        ((1, 1), 2),
    ]


def test_too_few_is_said_with_numbers() -> None:
    with pytest.raises(
        ConfigError,
        match=r"39 identities need 39 references, and the faces have 38; "
        r"not taken: .*2 whose mask lacks a kept part",
    ) as caught:
        planned(people(40), identities=39, pictures=1)
    assert "38 of a person who is taken" in str(caught.value)
    assert "2 without a mask" in str(caught.value)
    with pytest.raises(ConfigError, match=r"40 identities need 10 references of the cell \(Male, Young\), .* have 9"):
        planned(people(40), identities=40, pictures=1, balance=["Male", "Young"])
    with pytest.raises(ConfigError, match=r"match_attributes: no other face can lend to '.*' \(alike in: Male, Young"):
        planned(
            people(6, pictures=1), identities=4, pictures=1, match_attributes=["Male", "Young", "Chubby", "Big_Nose"]
        )
    with pytest.raises(ConfigError, match="have 19;"):
        planned(people(40), identities=21, pictures=1, splits=["train"])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"keep": {"styles": ["hair"]}}, "hair cannot be in keep.styles and in vary.styles"),
        ({"keep": {"attributes": ["Young"]}, "balance": ["Male"]}, "Male is balanced, so it must be in keep"),
        (
            {"keep": {"attributes": ["Smiling"]}, "vary": {"attributes": []}},
            "Smiling is seen in the mask, which another face lends: vary it, or add it to match_attributes",
        ),
        ({"masks": "own", "keep": {"attributes": []}}, "seen in the mask, which masks: own keeps"),
        ({"masks": "none"}, "styles need masks"),
        ({"balance": ["Male", "male"]}, "Male is there twice"),
        ({"identity_source": "both", "keep": {"attributes": []}}, "needs keep.attributes"),
        ({"prefix": "../"}, "bad_id"),
        ({"prefix": "CON."}, "device of Windows"),
        ({"keep": {"attributes": ["Mail"]}}, "Mail"),
    ],
)
def test_what_cannot_be_is_said_at_once(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Identities.model_validate({"identities": 2, "pictures": 2, **fields})


def test_everybody_lends_once_before_anybody_twice() -> None:
    pool = np.arange(7)
    drawn = draw_donors(pool, 20, 3, 5)
    assert [sorted(drawn[i : i + 7]) for i in (0, 7)] == [list(pool)] * 2
    assert (draw_donors(pool, 4, 3, 5) == drawn[:4]).all()
    assert (draw_donors(pool, 7, 3, 6) != drawn[:7]).any()
    assert draw_donors(pool, 4, 3, 5).base is None, "what is drawn holds no pool"


def test_one_picture_under_two_names_is_one_person() -> None:
    """Nobody knows whose pictures they are; and then under two names of people."""
    faces = people(8, pictures=1, seed=2)
    twin = faces.slice(2, 1).set_column(0, FACES.field("face_id"), pa.array(["twin"], pa.string()))
    unnamed = pa.concat_tables([faces, twin]).drop_columns("identity_id")
    renamed = twin.set_column(7, FACES.field("identity_id"), pa.array(["somebody"], pa.string()))
    for given in (cast(unnamed, FACES), pa.concat_tables([faces, renamed])):
        assert len({names_of(row["style_reference_a"]) for row in planned(given, identities=6, pictures=3)[0]}) == 6
        with pytest.raises(ConfigError, match=r"7 identities need 7 references, and the faces have 6; .*1 of a person"):
            planned(given, identities=7, pictures=1)
    rows, _ = planned(cast(unnamed, FACES), identities=6, pictures=20)
    of_twins = [row for row in rows if row["source"] in ("f002.0", "twin")]
    assert len(of_twins) == 20
    assert not {names_of(row["style_reference_b"]) for row in of_twins} & {"f002.0", "twin"}


def test_a_person_called_like_a_face_is_somebody_else() -> None:
    faces = cast(
        pa.Table.from_pylist(
            [
                {"face_id": "a", "split": "train", "identity_id": "b"},
                {"face_id": "b", "split": "train"},
                {"face_id": "c", "split": "train", "identity_id": "b"},
            ],
            FACES,
        ),
        FACES,
    )
    found = FacePool.of([faces], 0)
    whose = dict(zip(found.ids, found.person.tolist(), strict=True))
    assert whose["a"] == whose["c"] != whose["b"]


def test_a_lookup_of_a_file_travels_small(tmp_path: Path) -> None:
    (tmp_path / "bank.parquet").write_bytes(to_parquet(people(40)))
    held = InMemoryRows(Slice(str(tmp_path / "bank.parquet"), 0, 80))
    assert len(pickle.dumps(held)) < 1000
    assert list(held(["f003.1", "f002.0", "f003.1"])) == ["f003.1", "f002.0"]
    with pytest.raises(InputError, match="'nobody'"):
        held(["nobody"])


def test_a_persons_other_pictures_can_lend() -> None:
    faces = people(40, 4)
    by_id = {row["face_id"]: row for row in faces.to_pylist()}
    rows, notes = planned(faces, identities=20, pictures=5, donors="person", balance=["Male"])
    assert len(rows) == 100
    assert any("only 3 donors" in note for note in notes)
    for row in rows:
        own = by_id[row["source"]]
        lent = [by_id[f"{row['source'][:-1]}{k}"] for k in range(4) if f"{row['source'][:-1]}{k}" != row["source"]]
        assert row["mask"] in [face["mask"] for face in lent], "of another picture of the same person"
        assert row["mask"] != own["mask"]
        assert names_of(row["style_reference_a"]) == row["source"]
        assert row["style_reference_b"] is None or names_of(row["style_reference_b"]) in [
            face["face_id"] for face in lent
        ]
    for name in {row["identity_id"] for row in rows}:
        assert len({row["mask"]["bytes"] for row in of(rows, name)}) == 3, "each lends before any lends again"
    with pytest.raises(ConfigError, match="39 without another picture of the person"):
        planned(people(40, 1).slice(0, 40), identities=2, pictures=2, donors="person", keep={"styles": []})
