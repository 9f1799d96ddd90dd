"""Rows become tensors; bad rows become errors in place; dropout hides what it says as often as it says."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from raygen.core.errors import InputError
from raygen.models.conditions import Conditions, Shapes, drop
from raygen.models.config.conditions import ConditionDropout
from raygen.store.images import encode_image, encode_mask, fit_mask, images_from_rows, picture
from raygen.store.schemas import CONDITIONS, FACES

BOTH = ("mask", "attributes")
YES = [1] * 40


def row(name: str, mask: bytes | None = None, attributes: list[int | None] | None = None) -> dict[str, object]:
    values = attributes and tuple(attributes)
    return {"sample_id": name, "plan": "p", "seed": 0, "mask": picture(mask), "attributes": values}


def table(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), CONDITIONS)


def test_bad_rows_are_errors_in_place() -> None:
    good = encode_mask(np.full((8, 8), 3, np.uint8))
    rows = table(
        row("good", good, YES),
        row("truncated", good[:-20], YES),
        row("label", encode_mask(np.full((8, 8), 19, np.uint8)), YES),
        row("range", good, [2, *YES[1:]]),
        row("hole", good, [None, *YES[1:]]),
        row("shape", encode_mask(np.zeros((8, 4), np.uint8)), YES),
        row("nothing"),
        row("last", good, [-1] * 40),
    )
    conditions, errors = Conditions.from_rows(rows, BOTH, shapes=Shapes(16))
    reasons = [None if e is None else e.split(":")[0] for e in errors]
    assert reasons[0] is None
    assert reasons[1] in ("truncated", "corrupt")
    assert reasons[2:] == ["label", "attributes", "attributes", "size", None, None]
    assert conditions.present["mask"].tolist() == [True, *[False] * 6, True]
    assert conditions.present["attributes"].tolist() == [True, *[False] * 6, True]
    assert conditions.mask is not None
    assert conditions.attributes is not None
    assert conditions.mask.shape == (8, 16, 16)
    assert conditions.mask[0].unique().tolist() == [3]
    assert conditions.mask[1:7].sum() == 0
    assert conditions.attributes[7].tolist() == [-1.0] * 40


def test_a_missing_required_condition_is_an_error() -> None:
    _, errors = Conditions.from_rows(table(row("a", None, YES)), BOTH, required=["mask"], shapes=Shapes(8))
    assert errors[0] is not None
    assert errors[0].startswith("missing")


def test_columns_may_be_absent() -> None:
    rows = table(row("a", None, YES)).select(["sample_id"])
    conditions, errors = Conditions.from_rows(rows, BOTH, shapes=Shapes(8))
    assert errors == [None]
    assert not conditions.present["mask"].any()


def test_masks_are_resized_by_nearest_neighbour() -> None:
    mask = np.array([[0, 3], [17, 18]], np.uint8)
    assert fit_mask(mask, 4).tolist() == np.kron(mask, np.ones((2, 2), int)).tolist()
    assert fit_mask(fit_mask(mask, 64), 2).tolist() == mask.tolist()


def test_keep_take_pad() -> None:
    conditions, _ = Conditions.from_rows(
        table(row("a", encode_mask(np.ones((8, 8), np.uint8)), YES), row("b", None, YES)), BOTH, shapes=Shapes(8)
    )
    assert not conditions.keep({"mask"}).present["attributes"].any()
    assert conditions.keep({"mask"}).present["mask"].tolist() == [True, False]
    padded = conditions.pad(4)
    assert padded.n == 4
    assert padded.present["attributes"].tolist() == [True, True, False, False]
    assert conditions.take(torch.tensor([1])).present["mask"].tolist() == [False]
    assert conditions.take(slice(0, 1)).n == 1
    with pytest.raises(ValueError, match="fit"):
        conditions.pad(1)


def test_dropout_hides_as_often_as_it_says() -> None:
    n = 10_000
    conditions = Conditions.null(n, BOTH, Shapes(2))
    for flag in conditions.present.values():
        flag[:] = True
    config = ConditionDropout(null=0.1, only={"mask": 0.2, "attributes": 0.05})
    uniform = (torch.arange(n) + 0.5) / n
    seen = drop(conditions, config, uniform).present
    mask, attributes = seen["mask"], seen["attributes"]
    assert (~mask & ~attributes).sum() == 0.1 * n
    assert (mask & ~attributes).sum() == 0.2 * n
    assert (~mask & attributes).sum() == 0.05 * n
    assert (mask & attributes).sum() == pytest.approx(0.65 * n)


def test_dropout_never_adds_a_condition() -> None:
    uniform = torch.rand(100)
    config = ConditionDropout(null=0.0, only={"mask": 1.0})
    assert not drop(Conditions.null(100, BOTH, Shapes(2)), config, uniform).present["mask"].any()
    with pytest.raises(ValueError, match="at most 1"):
        ConditionDropout(null=0.6, only={"mask": 0.6})


def test_a_bad_picture_is_black_with_its_error() -> None:
    image = np.full((8, 8, 3), 200, np.uint8)
    data = [encode_image(image), b"no picture", encode_image(image[:4])]
    rows = [{"face_id": f"f{i}", "split": "train", "image": picture(d)} for i, d in enumerate(data)]
    images, errors = images_from_rows(pa.Table.from_pylist(rows, FACES), 8)
    assert images[0].tolist() == image.tolist()
    assert images[1:].sum() == 0
    assert [e.split(":")[0] for e in errors if e] == ["not_an_image", "size"]


def test_fit_mask_refuses_other_shapes() -> None:
    with pytest.raises(InputError, match="size"):
        fit_mask(np.zeros((4, 8), np.uint8), 4)
