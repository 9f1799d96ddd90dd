"""CLIP's cosine against transformers' own way, over a tiny random model in a folder as people have one."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from raygen.core.errors import ConfigError, InputError
from raygen.evaluation.aggregate import aggregate, gather_scores
from raygen.evaluation.config import ScoreConfig
from raygen.evaluation.scoring import Scorer
from raygen.extractors import clip
from raygen.extractors.clip import ClipScore, load_clip
from raygen.extractors.config import ClipConfig

CPU = torch.device("cpu")
TEXTS = ["a woman with black hair", "an old man", "A  smiling woman", "", "a woman with black hair", "hair " * 40]
LENGTH = 16
END, BEGIN = "<|endoftext|>", "<|startoftext|>"


def vocabulary() -> dict[str, int]:
    """Letters, letters at the end of a word, two merges, and the two marks."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "wo", "an</w>", BEGIN, END]
    return {token: i for i, token in enumerate(tokens)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    words = vocabulary()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": words[BEGIN], "eos_token_id": words[END], "pad_token_id": words[END]}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": len(words), "max_position_embeddings": LENGTH},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)  # also what is not a matrix is drawn
        model = CLIPModel(config)
    for value in model.state_dict().values():  # larger than it would start with, so that texts differ
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    model.save_pretrained(path)
    CLIPTokenizer(vocab=words, merges=[("w", "o"), ("a", "n</w>")]).save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def score(folder: Path) -> ClipScore:
    return load_clip(ClipConfig(folder=str(folder)), CPU)


def pictures(n: int, height: int = 48, width: int = 48, seed: int = 0) -> Tensor:
    """Random, and smooth enough to look like something after a resize."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    grown = [np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC)) for x in coarse]
    noise = random.integers(-20, 21, (n, height, width, 3))
    return torch.from_numpy((np.stack(grown) + noise).clip(0, 255).astype(np.uint8))


def theirs(folder: Path, images: Tensor, texts: list[str]) -> Tensor:
    """The cosine by the library's processor and model alone, one pair at a time."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    found = []
    with torch.inference_mode():
        for image, text in zip(images, texts, strict=True):
            given = processor(
                text=[text],
                images=[Image.fromarray(image.numpy())],
                return_tensors="pt",
                truncation=True,
                max_length=LENGTH,
            )
            made = model(**given)
            found.append(torch.cosine_similarity(made.image_embeds, made.text_embeds)[0])
    return torch.stack(found)


def test_the_cosine_is_transformers_own(folder: Path, score: ClipScore) -> None:
    """Pictures of the size that the network takes, so that nothing depends on the resize."""
    images = pictures(len(TEXTS), 32, 32)
    truth = theirs(folder, images, TEXTS)
    found = score.scores(images, TEXTS)
    assert found.dtype == torch.float32
    assert found.shape == (len(TEXTS),)
    torch.testing.assert_close(found, truth, rtol=0, atol=2e-6)
    assert float(truth.std()) > 1e-2
    assert float(truth.min()) < 0, "so that a clipped cosine would be noticed"


class Vectors:
    """The model as torchmetrics knows it: features are plain tensors, as they were before transformers 5."""

    def __init__(self, model: CLIPModel) -> None:
        self.model, self.config = model, model.config

    def to(self, device: torch.device) -> "Vectors":
        return self

    def get_image_features(self, pixels: Tensor) -> Tensor:
        found = self.model.get_image_features(pixels)
        return getattr(found, "pooler_output", found)

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        found = self.model.get_text_features(ids, mask)
        return getattr(found, "pooler_output", found)


def test_torchmetrics_says_the_same_of_it(folder: Path, score: ClipScore) -> None:
    """It gives a mean, times 100 and clipped at 0; one picture at a time shows each. It cuts long texts otherwise."""
    multimodal = pytest.importorskip("torchmetrics.functional.multimodal")
    model, processor = Vectors(CLIPModel.from_pretrained(folder).eval()), CLIPProcessor.from_pretrained(folder)
    texts = ["an old man", "hair", "a woman", "A man", "wo an"]
    images = pictures(5, 32, 32, seed=1)
    found = score.scores(images, texts)
    for image, text, mine in zip(images, texts, found, strict=True):
        with torch.inference_mode():
            truth = multimodal.clip_score(image.movedim(-1, 0), text, lambda: (model, processor))
        assert float(truth) == pytest.approx(max(0.0, 100 * float(mine)), abs=1e-3)
    assert int((found > 0).sum()) >= 2


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (128, 128), (50, 77), (91, 40), (20, 24)])
def test_pictures_are_prepared_as_by_pillow(folder: Path, score: ClipScore, height: int, width: int) -> None:
    """Nearly every level is the same: Pillow weighs with whole numbers, so that a half is sometimes another way up."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = pictures(2, height, width)
    given = [Image.fromarray(image.numpy()) for image in images]
    truth = CLIPImageProcessorPil.from_pretrained(folder)(given, return_tensors="pt")["pixel_values"]
    found = clip._preprocess(images, score.preprocessing)
    assert found.shape == truth.shape
    levels = (found - torch.as_tensor(truth)).abs() * torch.tensor(score.preprocessing.deviation).view(3, 1, 1) * 255
    assert float(levels.max()) < 2.01
    assert float(levels.mean()) < (0.02 if height == width else 0.3), "some tall pictures Pillow resizes down first"
    cosine = score.scores(images, TEXTS[:2])
    torch.testing.assert_close(cosine, theirs(folder, images, TEXTS[:2]), rtol=0, atol=5e-3)


def test_what_shares_a_batch_has_no_say(score: ClipScore, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(len(TEXTS))
    alone = torch.cat([score.scores(images[i : i + 1], TEXTS[i : i + 1]) for i in range(len(TEXTS))])
    torch.testing.assert_close(score.scores(images, TEXTS), alone, rtol=0, atol=2e-6)
    monkeypatch.setattr(clip, "CHUNK", 4)
    torch.testing.assert_close(score.scores(images, TEXTS), alone, rtol=0, atol=2e-6)
    order = [3, 1, 5, 0, 2, 4]
    swapped = score.scores(images[order], [TEXTS[i] for i in order])
    torch.testing.assert_close(swapped, alone[order], rtol=0, atol=2e-6)
    assert score.scores(images[:0], []).shape == (0,)
    with pytest.raises(ValueError, match="6 pictures, but 5 texts"):
        score.scores(images, TEXTS[:5])


def test_it_says_what_it_is(folder: Path, score: ClipScore) -> None:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert score.sha256 == digest
    assert score.name == f"clip:{digest[:8]}"
    said = json.loads(json.dumps(dict(score.protocol())))
    assert (said["network"], said["sha256"], said["precision"]) == (score.name, digest, "fp32")
    assert "32 px bicubic" in said["input"]
    assert "16 tokens" in said["text"]
    assert "not clipped" in said["score"]
    load_clip(ClipConfig(folder=str(folder), sha256=digest[:12]), CPU)
    with pytest.raises(InputError, match="not 00000000"):
        load_clip(ClipConfig(folder=str(folder), sha256="00000000"), CPU)


def test_older_files_are_read_too(folder: Path, score: ClipScore, tmp_path: Path) -> None:
    """A pickle in half precision, with the table of positions that files had once."""
    copy = shutil.copytree(folder, tmp_path / "old")
    state = {name: tensor.half() for name, tensor in load_file(copy / "model.safetensors").items()}
    state["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    torch.save(state, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    old = load_clip(ClipConfig(folder=str(copy)), CPU)
    assert {p.dtype for p in old.network.parameters()} == {torch.float32}
    images = pictures(3)
    torch.testing.assert_close(old.scores(images, TEXTS[:3]), score.scores(images, TEXTS[:3]), rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (["config.json"], "no CLIP model here"),
        (["model.safetensors"], "no CLIP weights here"),
        (["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"], "the tokenizer of CLIP"),
        (["preprocessor_config.json", "processor_config.json"], "the picture preprocessor of CLIP"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused(folder: Path, tmp_path: Path, lost: list[str], words: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name in lost:
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=words):
        load_clip(ClipConfig(folder=str(copy)), CPU)


def test_what_is_not_clip_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no CLIP model here.*nothing is downloaded"):
        load_clip(ClipConfig(folder="openai/clip-vit-base-patch32"), CPU)
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    for document, words in (
        ({**config, "model_type": "siglip"}, "type 'siglip', not CLIP"),
        ([], "not a configuration"),
    ):
        (copy / "config.json").write_text(json.dumps(document))
        with pytest.raises(ConfigError, match=words):
            load_clip(ClipConfig(folder=str(copy)), CPU)
    (copy / "config.json").write_text(json.dumps(config))
    prepared = json.loads((folder / "preprocessor_config.json").read_text())
    for change in ({"resample": 2}, {"do_center_crop": False}, {"size": {"height": 32, "width": 32}}):
        (copy / "preprocessor_config.json").write_text(json.dumps({**prepared, **change}))
        with pytest.raises(ConfigError, match="otherwise than CLIP"):
            load_clip(ClipConfig(folder=str(copy)), CPU)


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    state = load_file(folder / "model.safetensors")
    name = "visual_projection.weight"
    wrong = {
        "is missing": {k: v for k, v in state.items() if k != name},
        "is no parameter": {**state, "extra": torch.zeros(1)},
        "is not the CLIP of": {**state, name: torch.zeros(3, 3)},
        "is not finite": {**state, name: torch.full_like(state[name], torch.nan)},
    }
    for words, tensors in wrong.items():
        save_file(tensors, copy / "model.safetensors")
        with pytest.raises(InputError, match=words) as caught:
            load_clip(ClipConfig(folder=str(copy)), CPU)
        assert caught.value.reason == "weights"


def test_rows_are_scored_by_their_own_text_and_the_others_left_out(folder: Path, score: ClipScore) -> None:
    images = pictures(4).numpy()
    texts = ["an old man", None, "a woman with black hair", ""]
    rows = pa.table({"sample_id": ["a", "b", "c", "d"], "text": texts})
    config = ScoreConfig(parser=None, features=None, classifier=None, text=ClipConfig(folder=str(folder)))
    observer = Scorer(config, run_id="r")
    scores = gather_scores([observer(images, rows)])
    assert list(scores) == [score.name]
    assert scores[score.name].ids == ("a", "c")
    (row,) = aggregate(
        {"all": scores}, run_id="r", reference=None, protocols=observer.protocols(), frechet_name=""
    ).to_pylist()
    alone = score.scores(torch.from_numpy(images[[0, 2]]), ["an old man", "a woman with black hair"])
    assert row["metric"] == f"clip_score:{score.name.partition(':')[2]}"
    assert row["value"] == pytest.approx(float(alone.mean()), abs=1e-6)
    assert json.loads(row["protocol"])["sha256"] == score.sha256
    assert row["ci_low"] < row["value"] < row["ci_high"]


def test_logits_need_features() -> None:
    with pytest.raises(ValueError, match="needs `features"):
        ScoreConfig(logits=True)
