"""Edits: the denoiser comes back as it was, alphas interpolate, the rule takes what it says, bad edits are rows."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raygen.commands.registry import load
from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import ATTRIBUTE_INDEX, CLASS_INDEX
from raygen.datasets.procedural.draw import draw
from raygen.models import checkpoint
from raygen.models.collaborative import Collaborative
from raygen.models.conditions import Conditions
from raygen.planning import EditsFromFile, EditsFromPairs, paste
from raygen.sampling.config import EditJudgeConfig, ImagicConfig, SampleConfig
from raygen.sampling.edit_judge import EditJudge, best_alpha
from raygen.sampling.imagic import EditWorker, embed, fit, restored, tune
from raygen.sampling.low_rank import LowRankWeights
from raygen.store.images import decode_image, decode_mask, encode_image, encode_mask, picture
from raygen.store.run_store import open_input
from raygen.store.schemas import FACES, cast, texts_by_name
from tests.models.test_collaborative import together

FAST = ImagicConfig(embedding_steps=3, tuning_steps=3, tuning_lr=1e-3, batch=2)


def faces(n: int = 6) -> pa.Table:
    rows = []
    for i in range(n):
        face = draw(3, i, 0, 32)
        rows.append(
            {
                "face_id": f"f{i}",
                "split": "test",
                "image": picture(encode_image(face.pixels)),
                "mask": picture(encode_mask(face.mask)),
                "attributes": tuple(face.attributes.tolist()),
                "texts": list(face.texts.items()),
            }
        )
    return cast(pa.Table.from_pylist(rows, FACES), FACES)


@pytest.fixture(scope="module")
def model() -> Collaborative:
    return together("mask", "text", nulls=("mask", "text")).requires_grad_(False)


def target(model: Collaborative) -> dict[str, torch.Tensor]:
    conditions = Conditions(
        n=1,
        mask=torch.randint(0, 19, (1, 16, 16), dtype=torch.uint8),
        text=torch.ones(1, 8, dtype=torch.int64),
        present={"mask": torch.ones(1, dtype=torch.bool), "text": torch.ones(1, dtype=torch.bool)},
    )
    tokens = model.embed(conditions)
    return {name[len("text/given/") :]: value for name, value in tokens.items() if name.startswith("text/given/")}


# --- fitting ---


def test_fitting_explains_the_picture_better_and_is_undone(model: Collaborative) -> None:
    expert, z = model.expert("text"), torch.randn(1, *model.latent_shape)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    t = torch.full((64,), 600)
    noise = torch.randn(64, *model.latent_shape, generator=torch.Generator().manual_seed(0))

    def error(tokens: dict[str, torch.Tensor]) -> float:
        with torch.no_grad():
            ctx = expert.prepare({k: v.expand(64, *v.shape[1:]) for k, v in tokens.items()})
            zs = z.expand(64, -1, -1, -1)
            output = expert.predict(expert.schedule.add_noise(zs, noise, t), t, ctx)
            return float((output - expert.schedule.target(zs, noise, t)).square().mean())

    wanted = target(model)
    start = error(wanted)
    with restored(expert.networks):
        slow = ImagicConfig(embedding_steps=30, embedding_lr=0.03, tuning_steps=0, batch=16)
        embedded = fit(expert, z, wanted, slow, 7)
        middle = error(embedded)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the denoiser was frozen"
        tuned = fit(expert, z, embedded, ImagicConfig(embedding_steps=0, tuning_steps=30, tuning_lr=1e-3, batch=16), 7)
        end = error(tuned)
        assert all(torch.equal(tuned[k], embedded[k]) for k in tuned), "the embedding was frozen"
    assert start > middle > end
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "to the bit"


def test_weights_come_back_after_an_error(model: Collaborative) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    expert = model.expert("mask")

    def fail() -> None:
        with restored(expert.networks):
            fit(
                expert,
                torch.randn(1, *model.latent_shape),
                {"mask": torch.randn(1, 5, *model.latent_shape[1:])},
                FAST,
                1,
            )
            assert not all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
            raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        fail()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def test_the_same_key_fits_the_same(model: Collaborative) -> None:
    z, found = torch.randn(1, *model.latent_shape), []
    for key in (5, 5, 6):
        with restored(model.expert("text").networks):
            found.append(fit(model.expert("text"), z, target(model), FAST, key)["text_tokens"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# --- judging ---


def test_the_rule_weighs_both_sides() -> None:
    alphas = (0.0, 0.5, 1.0, 1.5)
    fidelity, similarity = np.array([0.0, 0.6, 0.9, 1.0]), np.array([1.0, 0.8, 0.7, 0.1])
    assert best_alpha(fidelity, similarity, alphas) == 2  # harmonic means 0, 0.686, 0.788, 0.182
    assert best_alpha(np.full(4, 0.5), np.full(4, 0.5), alphas) == 0, "of equals the smallest change"
    assert best_alpha(np.array([0.0, 0.01, 0.02, 0.04]), similarity, alphas) == 0, "nothing was reached: leave it"
    assert best_alpha(None, similarity, alphas) == 2, "nobody can judge: the target itself"


def test_fidelity_counts_only_what_was_to_change() -> None:
    judge = EditJudge(EditJudgeConfig(), torch.device("cpu"))
    face = draw(0, 1, 0, 64)
    other = draw(0, 2, 0, 64)
    images = np.stack([face.pixels, other.pixels])
    found = judge.fidelity(images, face.pixels, mask=other.mask, own_mask=face.mask, attributes=None)
    assert found is not None
    assert found[0] < 0.15, "the input itself has changed nothing"
    assert found[1] > 0.75, "a picture of the target mask has changed nearly all"
    assert judge.fidelity(images, face.pixels, mask=face.mask, own_mask=face.mask, attributes=None) is None
    known = face.attributes.tolist()
    assert judge.fidelity(images, face.pixels, mask=None, own_mask=None, attributes=known, own_attributes=known) is None
    male = [0] * 40
    male[ATTRIBUTE_INDEX["Male"]] = int(face.attributes[ATTRIBUTE_INDEX["Male"]])
    said = judge.fidelity(images[:1], face.pixels, mask=None, own_mask=None, attributes=male)
    male[ATTRIBUTE_INDEX["Male"]] *= -1
    denied = judge.fidelity(images[:1], face.pixels, mask=None, own_mask=None, attributes=male)
    assert said is not None
    assert denied is not None
    assert said[0] > 0.5
    assert said[0] + denied[0] == pytest.approx(1)
    assert judge.similarity(images[:1], face.pixels)[0] == pytest.approx(1)


# --- planning ---


def test_pairs_change_one_thing() -> None:
    given = faces(24)
    planned = EditsFromPairs(change="Eyeglasses", parts=("eye_g",), alphas=(0.0, 1.0)).rows(given)
    assert planned.num_rows % 2 == 0
    assert planned.num_rows >= 4
    own, wearers = {row["face_id"]: row for row in given.to_pylist()}, 0
    for row in planned.to_pylist():
        face = own[row["source"]]
        assert row["attributes"]["Eyeglasses"] == -face["attributes"]["Eyeglasses"]
        changed = [name for name, value in row["attributes"].items() if value != face["attributes"][name]]
        assert changed == ["Eyeglasses"], "all else stays as the face has it"
        texts = texts_by_name(face["texts"])
        assert texts["Young"] in row["text"]
        assert texts["Eyeglasses"] not in row["text"]
        before, after = decode_mask(face["mask"]["bytes"]), decode_mask(row["mask"]["bytes"])
        glasses = CLASS_INDEX["eye_g"]
        wanted = row["attributes"]["Eyeglasses"] == 1
        assert (after == glasses).any() == wanted, "on where asked on, gone where asked off"
        assert ((before != after) <= ((before == glasses) | (after == glasses))).all(), "nothing else moves"
        wearers += row["attributes"]["Eyeglasses"] == -1
    assert wearers, "somebody takes them off"
    assert planned["alpha"].to_pylist()[:2] == [0.0, 1.0]
    assert planned["edit_id"][0] == planned["edit_id"][1]


def test_pairs_leave_out_who_cannot_be_edited() -> None:
    """No sentence, or no mask where parts are wanted: left out. A bad mask, or one of another size: a row."""
    rows = faces(24).to_pylist()
    rows[0]["texts"] = [{"key": name, "value": "Somebody."} for name in ("overall", "beard_and_age")]
    rows[1]["mask"] = None
    rows[2]["mask"] = picture(b"no picture")
    rows[3]["mask"] = picture(encode_mask(np.ones((8, 8), np.uint8)))
    given = cast(pa.Table.from_pylist(rows, FACES), FACES)
    planned = EditsFromPairs(change="Smiling", parts=("hair",), alphas=(0.0, 1.0)).rows(given).to_pylist()
    sources = {row["source"]: row["error"] for row in planned}
    assert not {"f0", "f1"} & set(sources)
    assert sources["f2"].startswith("not_an_image")
    assert sources["f3"].startswith("size")
    assert sum(error is None for error in sources.values()) > 10
    short = EditsFromPairs(change="Young", sentences=("Young", "No_Beard"), alphas=(1.0,)).rows(given).to_pylist()
    assert all(row["text"].count(".") == 2 for row in short)
    with pytest.raises(ValueError, match="says nothing of Smiling"):
        EditsFromPairs(change="Smiling", sentences=("Young",))


def test_a_file_of_edits(tmp_path: Path) -> None:
    rows = {row["face_id"]: row for row in faces(3).to_pylist()}

    def lookup(ids: object) -> dict[str, dict[str, object]]:
        for name in ids:  # type: ignore[attr-defined]
            if name not in rows:
                raise InputError(f"no face {name!r}", reason="source")
        return {name: rows[name] for name in ids}  # type: ignore[attr-defined]

    lines = [
        {"edit_id": "smile", "source": "f0", "text": "She smiles.", "attributes": {"Smiling": 1}},
        {"edit_id": "hair", "source": "f1", "mask_of": "f2", "parts": ["hair"]},
        {"edit_id": "whole", "source": "f1", "mask_of": "f2"},
        {"edit_id": "nobody", "source": "f9"},
        {"edit_id": "what", "source": "f0", "attributes": {"Smilling": 1}},
    ]
    listing = pa.table({"line": [json.dumps(line) for line in lines]})
    planned = EditsFromFile(file="edits.jsonl", alphas=(0.0, 1.0)).rows(listing, lookup).to_pylist()
    assert [row["edit_id"] for row in planned[:6:2]] == ["smile", "hair", "whole"]
    assert [row["edit_id"] for row in planned[6:]] == ["nobody", "what"], "a row for each that failed"
    assert planned[0]["text"] == "She smiles."
    assert planned[0]["mask"] == rows["f0"]["mask"], "what is not asked for stays"
    smiling = dict(rows["f0"]["attributes"])
    smiling["Smiling"] = 1
    assert planned[0]["attributes"] == smiling
    assert planned[2]["attributes"] == rows["f1"]["attributes"]
    assert planned[2]["text"] == texts_by_name(rows["f1"]["texts"])["overall"]
    assert planned[2]["mask"]["bytes"] == paste(rows["f1"]["mask"]["bytes"], rows["f2"]["mask"]["bytes"], ["hair"])
    assert planned[4]["mask"] == rows["f2"]["mask"]
    assert [row["error"] for row in planned[:6]] == [None] * 6
    assert planned[6]["error"] == "source: no face 'f9'"
    assert planned[7]["error"].startswith("attributes: what: no attribute 'Smilling'")


# --- the worker and the job ---


def conditions(alphas: tuple[float, ...] = (0.0, 0.5, 1.0)) -> pa.Table:
    planned = EditsFromPairs(change="Smiling", parts=("hair",), alphas=alphas).rows(faces(12))
    return planned.drop_columns(["error"]).slice(0, len(alphas))


def worker(
    model: Collaborative, folder: Path, imagic: ImagicConfig = FAST, edits: int = 1, **fields: object
) -> EditWorker:
    if not folder.exists():
        checkpoint.save(model, folder)
    given = {row["face_id"]: row for row in faces(12).to_pylist()}
    sample = SampleConfig(checkpoint=str(folder), batch=3, run_id="r", sampler={"name": "ddim", "steps": 4}, **fields)
    return EditWorker(sample, imagic, EditJudgeConfig(), lambda ids: {i: given[i] for i in ids}, threads=1, edits=edits)


def test_an_edit_is_a_batch_and_leaves_no_trace(model: Collaborative, tmp_path: Path) -> None:
    editor = worker(model, tmp_path / "model", influence_steps=2)
    before = {k: v.clone() for k, v in editor.model.state_dict().items()}
    rows = conditions()
    tables = editor.start(rows)()
    assert all(torch.equal(v, before[k]) for k, v in editor.model.state_dict().items())
    samples = tables["samples"]
    assert samples["error"].to_pylist() == [None] * 3
    assert len(set(samples["image_sha256"].to_pylist())) == 3, "alphas differ"
    scores = [row for row in tables["scores"].to_pylist() if row["metric"] == "edit:ssim"]
    assert [row["vector"][0] for row in scores] == [0.0, 0.5, 1.0]
    assert sum(row["vector"][3] for row in scores) == 1
    accepted = [row for row in tables["selection"].to_pylist() if row["accepted"]]
    assert len(accepted) == 1
    assert accepted[0]["reason"].startswith("alpha ")
    assert tables["influence"].num_rows == 3 * 2 * 3, "three pictures, two steps, two experts and the estimate"
    again = editor.start(rows)()["samples"]
    assert again["image_sha256"] == samples["image_sha256"], "an edit does not depend on the edits before it"


def test_edits_in_half_precision_tune_whole_weights(model: Collaborative, tmp_path: Path) -> None:
    """Weights are float32, and each step of tuning sees those of the step before."""
    editor = worker(model, tmp_path / "model", precision="bfloat16")
    assert editor.environment()["precision"] == "bfloat16"
    assert {p.dtype for p in editor.model.parameters()} == {torch.float32}
    expert, z, t = model.expert("text"), torch.randn(1, *model.latent_shape), torch.tensor([600])
    ctx = expert.prepare(target(model))
    with restored(expert.networks):
        expert.unet.requires_grad_(True)  # autocast keeps copies of such weights, until its outermost block ends
        with editor.sampler.arithmetic():
            before = expert.predict(z, t, ctx)
            with torch.no_grad():
                for weight in expert.unet.parameters():
                    weight.mul_(1.5)
            after = expert.predict(z, t, ctx)
        with editor.sampler.arithmetic():
            assert torch.equal(after, expert.predict(z, t, ctx))
        assert not torch.equal(after, before)
    half = editor.start(conditions())()["samples"]
    whole = worker(model, tmp_path / "model").start(conditions())()["samples"]
    assert half["error"].null_count == 3
    assert half["image_sha256"] != whole["image_sha256"]


def test_bad_edits_are_rows_with_reasons(model: Collaborative, tmp_path: Path) -> None:
    editor = worker(model, tmp_path / "model", missing="quarantine")
    rows = conditions()
    no_text = rows.set_column(rows.schema.get_field_index("text"), "text", pa.nulls(3, pa.string()))
    errors = editor.start(no_text)()["samples"]["error"].to_pylist()
    assert all(error.startswith("missing: the model needs 'text'") for error in errors)
    editor.faces = lambda ids: {i: {"image": picture(b"no picture"), "mask": None} for i in ids}
    errors = editor.start(rows)()["samples"]["error"].to_pylist()
    assert all(error.startswith("source: not_an_image") for error in errors)
    mixed = pa.concat_tables([rows.slice(0, 1), conditions((0.0,)).slice(0, 1)])
    mixed = mixed.set_column(mixed.schema.get_field_index("edit_id"), "edit_id", pa.array(["a", "b"]))
    with pytest.raises(ConfigError, match="a batch holds the alphas of 1 edits, not of 2"):
        editor.start(mixed)


def several(n: int = 2) -> pa.Table:
    """Edits of unequally many alphas: the last one of a shard may be cut."""
    planned = EditsFromPairs(change="Smiling", parts=("hair",), alphas=(0.0, 0.5, 1.0)).rows(faces(12))
    return planned.drop_columns(["error"]).slice(0, 3 * n - 1)


@pytest.mark.parametrize("tuning", ["full", "low_rank"])
def test_edits_at_once_are_those_of_one_at_a_time(tuning: str, model: Collaborative, tmp_path: Path) -> None:
    """Up to rounding: pictures differ by at most a level of 255, scores by 0.01."""
    # Rates at which Adam does not make rounding large where a gradient is nearly 0.
    imagic = ImagicConfig(embedding_steps=2, embedding_lr=0.03, tuning_steps=2, tuning_lr=1e-4, batch=2, tuning=tuning)
    rows, found = several(), []
    for edits in (1, 2):
        editor = worker(model, tmp_path / "model", imagic=imagic, edits=edits)
        before = {k: v.clone() for k, v in editor.model.state_dict().items()}
        starts = range(0, rows.num_rows, 3 * edits)
        tables = [editor.start(rows.slice(i, 3 * edits))() for i in starts]
        assert all(torch.equal(v, before[k]) for k, v in editor.model.state_dict().items())
        found.append({name: pa.concat_tables([t[name] for t in tables]).to_pylist() for name in tables[0]})
    one, many = found
    assert [row["sample_id"] for row in many["samples"]] == rows["sample_id"].to_pylist()
    for a, b in zip(one["samples"], many["samples"], strict=True):
        images = [decode_image(row["image"]["bytes"]).astype(int) for row in (a, b)]
        assert np.abs(images[0] - images[1]).max() <= 1
    for a, b in zip(*(sorted(f["scores"], key=lambda r: (r["metric"], r["sample_id"])) for f in found), strict=True):
        assert (a["sample_id"], a["metric"]) == (b["sample_id"], b["metric"])
        np.testing.assert_allclose(a["vector"], b["vector"], atol=0.01)
    assert one["selection"] == many["selection"]


def test_low_rank_weights_explain_the_picture_and_keep_edits_apart(model: Collaborative) -> None:
    expert, z = model.expert("text"), torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(4))
    wanted = {name: torch.cat([value, value]) for name, value in target(model).items()}
    config = ImagicConfig(tuning_steps=12, tuning_lr=2e-2, batch=4, tuning="low_rank", rank=2)
    noise = torch.randn(32, *model.latent_shape, generator=torch.Generator().manual_seed(0))

    def error(of: slice, weights: LowRankWeights | None = None) -> list[float]:
        """Of each edit in the slice, for 16 noises."""
        zs, eps = z[of].repeat_interleave(16, dim=0), noise[: 16 * len(z[of])]
        t = torch.full((len(zs),), 600)
        with torch.no_grad(), nullcontext() if weights is None else weights.active(16):
            ctx = expert.prepare({k: v[of].repeat_interleave(16, dim=0) for k, v in wanted.items()})
            output = expert.predict(expert.schedule.add_noise(zs, eps, t), t, ctx)
            squared = (output - expert.schedule.target(zs, eps, t)).square()
        return squared.unflatten(0, (-1, 16)).flatten(1).mean(dim=1).tolist()

    def tuned(of: slice, keys: list[int]) -> LowRankWeights:
        weights = LowRankWeights(expert.networks, keys, 2)
        assert error(of, weights) == pytest.approx(error(of)), "they begin without effect"
        with weights.active(config.batch):
            tune(expert, z[of], {k: v[of] for k, v in wanted.items()}, config, keys, weights.parameters())
        return weights

    start, end = error(slice(None)), error(slice(None), tuned(slice(None), [7, 8]))
    assert all(after < 0.95 * before for before, after in zip(start, end, strict=True))
    alone = [error(slice(i, i + 1), tuned(slice(i, i + 1), [7 + i]))[0] for i in (0, 1)]
    assert end[0] == pytest.approx(alone[0], rel=0.02), "an edit does not depend on those beside it"
    assert end[1] == pytest.approx(alone[1], rel=0.1), "here with other noises than in the batch"
    assert error(slice(None)) == start, "outside of `active` nothing is left"


def test_embeddings_at_once_are_those_of_one_at_a_time(model: Collaborative) -> None:
    z = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    wanted = {
        n: torch.cat([v, 2 * v, -v]) if v.is_floating_point() else v.expand(3, -1) for n, v in target(model).items()
    }
    config, expert = ImagicConfig(embedding_steps=5, embedding_lr=0.03, batch=2), model.expert("text")
    many = embed(expert, z, wanted, config, [1, 2, 3])
    for i in range(3):
        one = embed(expert, z[i : i + 1], {n: v[i : i + 1] for n, v in wanted.items()}, config, [i + 1])
        for name, value in one.items():
            torch.testing.assert_close(many[name][i : i + 1], value, rtol=1e-4, atol=1e-5)
    assert not torch.equal(many["text_tokens"], wanted["text_tokens"])


def test_low_rank_weights_are_products(model: Collaborative) -> None:
    """Against one layer at a time with W + B A, for batches that hold the edits once and twice."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(5, 4), torch.nn.Conv2d(5, 4, 3, stride=2, padding=1)])
    weights = LowRankWeights([layers], [1, 2, 3], 2)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter)
    for layer, (first, second), shape in zip(layers, weights.pairs, ((6, 5), (5, 8, 8)), strict=True):
        for times in (1, 2):
            x = torch.randn(times * 3 * 2, *shape)
            with weights.active(2):
                found = layer(x)
            for i in range(len(x)):
                edit = i // 2 % 3
                change = (second[edit] @ first[edit].flatten(1)).view_as(layer.weight)
                expected = torch.func.functional_call(layer, {"weight": layer.weight + change}, x[i : i + 1])
                torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-4, atol=1e-4)


def test_a_rank_without_low_rank_tuning_is_refused() -> None:
    with pytest.raises(ValueError, match="rank has no effect: tuning=full changes all weights"):
        ImagicConfig(rank=4)


def test_from_faces_to_edits_by_jobs(model: Collaborative, tmp_path: Path) -> None:
    """The commands a user types, with a plan from a file; the same command again finds everything done."""
    checkpoint.save(model, tmp_path / "model")
    jobs = {
        "faces": {
            "kind": "ingest",
            "data": {"kind": "procedural", "identities": 4, "pictures": 1, "size": 32},
        },
        "conditions": {
            "kind": "plan",
            "faces": str(tmp_path / "faces"),
            "planning": {"kind": "edits", "file": str(tmp_path / "edits.jsonl"), "alphas": [0.0, 1.0]},
        },
        "samples": {
            "kind": "edit",
            "conditions": str(tmp_path / "conditions"),
            "faces": str(tmp_path / "faces"),
            "ignore": ["attributes"],
            "checkpoint": str(tmp_path / "model"),
            "imagic": FAST.model_dump(),
            "edits": 2,
            "shard_rows": 4,
            "sampler": {"name": "ddim", "steps": 3},
        },
    }
    lines = [
        {"edit_id": f"e{i}", "source": f"p{i:06d}-000", "mask_of": "p000003-000", "text": "a hat"} for i in range(3)
    ]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, document in jobs.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps({**document, "out": str(tmp_path / name)}))
        load(str(path)).run(lambda _: None)
    store, _ = open_input(str(tmp_path / "samples"))
    assert len(store.plan().shards) == 2, "two edits a shard, and one"
    samples = pa.concat_tables(store.tables("samples"))
    assert samples.num_rows == 6
    assert samples["error"].null_count == 6
    assert sum(t["accepted"].to_pylist().count(True) for t in store.tables("selection")) == 3
    assert "2 were already committed" in load(str(tmp_path / "samples.yaml")).run(lambda _: None).facts["shards"]
    for line, match in (
        ({"edit_id": "e", "sauce": "x"}, r"line 1: sauce: .*source"),
        ({"edit_id": "my edit", "source": "f0"}, "line 1: edit_id"),
        ({"edit_id": "e", "source": "f0", "parts": ["hair"]}, "name it as mask_of"),
    ):
        (tmp_path / "edits.jsonl").write_text(json.dumps(line))
        with pytest.raises(ConfigError, match=match):
            load(str(tmp_path / "conditions.yaml"), [f"out={tmp_path / 'other'}"]).run(lambda _: None)
