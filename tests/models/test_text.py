"""Texts to ids to tokens: vocabularies, the transformer, frozen encoders, and the checkpoint that keeps them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raygen.core.errors import ConfigError, InputError
from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.conditions import Conditions
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.text import PretrainedTextConfig, TransformerTextConfig
from raygen.models.ldm import LDM
from raygen.models.text import FrozenText, Tokenizer, learn_vocabulary, pretrained_encoder, tokenizer_of
from raygen.sampling.guidance import build_guidance
from tests.fakes import rewrite

TEXTS = ["This man is in the thirties.", "She has no bangs and her whole forehead is visible.", "He is smiling."]
SMALL = TransformerTextConfig(length=12, layers=2, heads=2, head_dim=8, inner=32)


def tokenizer(length: int = 12) -> Tokenizer:
    return tokenizer_of(SMALL.model_copy(update={"length": length}), lambda: TEXTS)


def stage() -> FirstStage:
    return FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8), mid_attention=False))


def model(**fields: object) -> LDM:
    config = LDMConfig(
        modalities=("text", "mask", "attributes"),
        channels=(8, 16),
        attention=(False, True),
        head_dim=8,
        token_width=16,
        text=SMALL,
        mask_path="tokens",
        mask_side=8,
        attribute_path="tokens",
        **fields,
    )
    made = checkpoint.build(config, stage(), seed=0, tokenizer=tokenizer())
    assert isinstance(made, LDM)
    torch.nn.init.normal_(made.unet.conv_out.weight, std=0.1)  # zero at the start of training
    for module in made.unet.modules():
        if module.__class__.__name__ == "Transformer2DModel":
            torch.nn.init.normal_(module.proj_out.weight, std=0.1)
    return made.eval()


def test_a_learned_vocabulary_does_not_depend_on_the_order_of_the_texts() -> None:
    words = learn_vocabulary(TEXTS)
    assert words == learn_vocabulary(TEXTS[::-1])
    assert words[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert "forehead" in words
    assert len(set(words)) == len(words)


def test_ids_are_framed_filled_and_cut() -> None:
    encode = tokenizer(8)
    words = learn_vocabulary(TEXTS)
    short, long, unseen = encode(["He is smiling", TEXTS[1], "mesh"]).tolist()
    named = [words[i] for i in short]
    assert named == ["[CLS]", "he", "is", "smiling", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert len(long) == 8
    assert words[long[-1]] == "[SEP]"
    assert [words[i] for i in unseen][:5] == ["[CLS]", "m", "##e", "##s", "##h"]
    assert torch.equal(encode([TEXTS[0].upper()]), encode([TEXTS[0]]))


def test_a_vocabulary_file_gives_its_own_ids(tmp_path: Path) -> None:
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "a", "man", "##ly"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (tmp_path / "open.txt").write_text("\n".join(words), encoding="utf-8")  # no line end behind the last word
    for place in (tmp_path, tmp_path / "vocab.txt", tmp_path / "open.txt"):
        encode = tokenizer_of(TransformerTextConfig(vocabulary=str(place), length=6), list)
        assert encode(["A manly !"]).tolist() == [[3, 5, 6, 7, 2, 4]]
    (tmp_path / "bad.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\[PAD\]"):
        tokenizer_of(TransformerTextConfig(vocabulary=str(tmp_path / "bad.txt")), list)


CASED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "she", "smiles", "She", "É", "é", "e", "王", "王王"]


def _folder(path: Path, words: list[str], **config: object) -> Path:
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if config:
        (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def ids_of(place: Path, text: str) -> list[int]:
    ids = tokenizer_of(TransformerTextConfig(vocabulary=str(place), length=8), list)([text])[0].tolist()
    return [i for i in ids if i not in (0, 2, 3)]


@pytest.mark.parametrize(
    ("config", "she", "accent"),
    [
        ({"do_lower_case": False}, [7], [8]),
        ({"do_lower_case": True}, [5], [10]),
        ({"do_lower_case": True, "strip_accents": False}, [5], [9]),
        ({"do_lower_case": False, "strip_accents": True}, [7], [1]),
        ({}, [7], [8]),  # it has capital letters, which lower case would never give
    ],
)
def test_the_folder_of_a_vocabulary_says_whether_it_is_cased(
    config: dict[str, object], she: list[int], accent: list[int], tmp_path: Path
) -> None:
    folder = _folder(tmp_path / "bert", CASED, **config)
    for place in (folder, folder / "vocab.txt"):
        assert ids_of(place, "She") == she
        assert ids_of(place, "É") == accent
    assert ids_of(_folder(tmp_path / "plain", [w.lower() if w[0] != "[" else w for w in CASED[:7]]), "SHE") == [5]


def test_the_folder_says_how_chinese_characters_are_split(tmp_path: Path) -> None:
    assert ids_of(_folder(tmp_path / "split", CASED), "王王") == [11, 11]
    whole = _folder(tmp_path / "whole", CASED, do_lower_case=False, tokenize_chinese_chars=False)
    assert ids_of(whole, "王王") == [12]


def test_a_tokenizer_file_decides_alone(tmp_path: Path) -> None:
    """As transformers 5 writes it: tokenizer.json, and in tokenizer_config.json another word for the padding."""
    from transformers import AutoTokenizer

    folder = _folder(tmp_path / "bert", CASED, do_lower_case=True)
    backend = Tokenizer.wordpiece(CASED, 8, lowercase=False).backend
    backend.save(str(folder / "tokenizer.json"))
    for place in (folder, folder / "tokenizer.json", folder / "vocab.txt"):
        assert ids_of(place, "She É smiles") == [7, 8, 6]
    (folder / "vocab.txt").unlink()
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": {"content": "[MASK]"}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "[MASK]"}))
    ours = tokenizer_of(TransformerTextConfig(vocabulary=str(folder), length=8), list)
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = theirs(["She smiles"], padding="max_length", max_length=8)["input_ids"]
    assert ours(["She smiles"]).tolist() == expected
    assert ours(["She"])[0, -1] == 4
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenizer_of(TransformerTextConfig(vocabulary=str(folder), length=8), list)(["She"])[0, -1] == 4
    (folder / "tokenizer_config.json").write_text("[")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: not a tokenizer's configuration"):
        ids_of(folder, "She")


def test_a_cased_folder_gives_the_ids_of_transformers(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    folder = _folder(tmp_path / "bert", CASED)
    theirs = BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=False)
    theirs.save_pretrained(tmp_path / "saved")
    shutil.copy(folder / "vocab.txt", tmp_path / "saved")
    ours = tokenizer_of(TransformerTextConfig(vocabulary=str(tmp_path / "saved"), length=8), list)
    text = "She smiles, É e she"
    assert ours([text]).tolist() == theirs([text], padding="max_length", max_length=8, truncation=True)["input_ids"]


def test_a_vocabulary_that_is_not_at_hand_is_named() -> None:
    with pytest.raises(ConfigError, match="nobody/nothing"):
        tokenizer_of(TransformerTextConfig(vocabulary="nobody/nothing"), list)


def test_program_code_in_a_text_encoders_folder_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless `trust_remote_code=False` is said, transformers 5.23.0 asks on the terminal, and a `y` there runs it."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    folder, ran = tmp_path / "encoder", tmp_path / "ran"
    folder.mkdir()
    (folder / "program.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import BertModel, PretrainedConfig, PreTrainedTokenizerFast\n"
        "class Config(PretrainedConfig):\n    model_type = 'of_its_own'\n"
        "class Model(BertModel):\n    config_class = Config\n"
        "class Words(PreTrainedTokenizerFast):\n    pass\n"
    )
    classes = {"AutoConfig": "program.Config", "AutoModel": "program.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "of_its_own", "auto_map": classes}))
    words = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": [None, "program.Words"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    for part in (pretrained_encoder, lambda name: tokenizer_of(PretrainedTextConfig(name=name), list)):
        with pytest.raises(ConfigError, match="needs program code of its own, which is never run"):
            part(str(folder))
    assert not ran.exists()
    assert asked == []


def test_every_modality_reaches_the_prediction_and_absence_is_the_null() -> None:
    made = model()
    assert made.tokenizer is not None
    zt, t = torch.randn(2, *made.latent_shape), torch.tensor([500, 500])
    full = Conditions(
        n=2,
        mask=torch.randint(0, 19, (2, 16, 16), dtype=torch.uint8),
        attributes=torch.ones(2, 40),
        text=made.tokenizer(TEXTS[:2]),
        present={name: torch.ones(2, dtype=torch.bool) for name in ("mask", "attributes", "text")},
    )
    with torch.no_grad():
        eps = {
            keep: made.eps(zt, t, made.prepare(made.embed(full.keep(keep))))
            for keep in [(), ("mask",), ("attributes",), ("text",), ("mask", "attributes", "text")]
        }
        null = made.eps(zt, t, made.prepare(made.embed(made.null(2))))
    torch.testing.assert_close(eps[()], null)
    for keep, value in eps.items():
        if keep:
            assert (value - null).abs().max() > 1e-5, keep


def test_guidance_weighs_each_modality() -> None:
    made = model()
    assert made.tokenizer is not None
    zt, t = torch.randn(1, *made.latent_shape), torch.tensor([300])
    conditions = Conditions(
        n=1,
        mask=torch.full((1, 16, 16), 13, dtype=torch.uint8),
        attributes=torch.ones(1, 40),
        text=made.tokenizer(TEXTS[:1]),
        present={name: torch.ones(1, dtype=torch.bool) for name in ("mask", "attributes", "text")},
    )
    with torch.no_grad():

        def one(*keep: str) -> torch.Tensor:
            return made.predict(zt, t, made.prepare(made.embed(conditions.keep(keep))))

        expected = one() + 1.5 * (one("mask") - one()) + 3 * (one("text") - one())
        found = build_guidance(made, conditions, {"mask": 1.5, "text": 3.0})(made, zt, t)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_two_classes_of_one_shape_have_one_token_unless_they_are_named() -> None:
    from raygen.models.condition_encoders import MaskTokenEncoder

    mask = torch.zeros(2, 32, 32, dtype=torch.uint8)
    mask[0, 4:9, 4:9], mask[1, 4:9, 4:9] = 4, 5
    present = torch.ones(2, dtype=torch.bool)
    plain, named = MaskTokenEncoder(32, 8, False), MaskTokenEncoder(32, 8, True)
    assert plain(mask, present).shape == (2, 19, 8)
    torch.testing.assert_close(plain(mask, present)[0, 4], plain(mask, present)[1, 5])
    assert not torch.allclose(named(mask, present)[0, 4], named(mask, present)[1, 5])


def test_a_checkpoint_keeps_vocabulary_and_encoder(tmp_path: Path) -> None:
    made = model()
    checkpoint.save(made, tmp_path / "model")
    loaded = checkpoint.load(tmp_path / "model")
    assert isinstance(loaded, LDM)
    assert loaded.tokenizer is not None
    assert made.tokenizer is not None
    ids = made.tokenizer(TEXTS)
    assert torch.equal(loaded.tokenizer(TEXTS), ids)
    conditions = made.null(3)
    conditions.text[:] = ids  # type: ignore[index]
    conditions.present["text"][:] = True
    zt, t = torch.randn(3, *made.latent_shape), torch.tensor([1, 500, 999])
    with torch.no_grad():
        before, after = (m.eps(zt, t, m.prepare(m.embed(conditions))) for m in (made, loaded))
    torch.testing.assert_close(before, after)
    (tmp_path / "model/tokenizer/tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="checkpoint"):
        checkpoint.load(tmp_path / "model")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder as people have them on disk: a small CLIP with a BERT vocabulary."""
    from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("clip")
    words = learn_vocabulary(TEXTS)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    CLIPTextModel(config).save_pretrained(folder)
    return folder


def test_a_checkpoint_holds_what_is_read_of_an_encoder_and_nothing_of_its_library(
    pretrained: Path, tmp_path: Path
) -> None:
    """transformers 5.23.0 and 4.57.3 write other configurations for the same network, and other names of parameters."""
    text = PretrainedTextConfig(name=str(pretrained), length=12)
    config = LDMConfig(
        modalities=("text",), channels=(8, 16), attention=(False, True), head_dim=8, token_width=24, text=text
    )
    made = checkpoint.build(config, stage(), seed=0, tokenizer=tokenizer_of(text, list))
    checkpoint.save(made, tmp_path / "model")
    folder = tmp_path / "model/text_encoder"
    document = json.loads((folder / "config.json").read_text())
    assert document == {
        "kind": "pretrained",
        "class": "CLIPTextModel",
        "config": {
            "vocab_size": len(learn_vocabulary(TEXTS)),
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 12,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    }
    names = set(load_file(folder / "model.safetensors"))
    assert {name.split(".")[1] for name in names} == {"embeddings", "encoder", "final_layer_norm"}
    others = {"transformers_version": "4.57.3", "dtype": "float32", "torch_dtype": "float16", "eos_token_id": 3}
    document["config"] |= others  # as folders from before have it
    (folder / "config.json").write_text(json.dumps(document))
    rewrite(tmp_path / "model/raygen.json", files={})  # nor had they check sums
    loaded, conditions = checkpoint.load(tmp_path / "model"), made.null(1)
    with torch.no_grad():
        assert torch.equal(loaded.embed(conditions)["text_tokens"], made.embed(conditions)["text_tokens"])
    document["config"]["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="names differ from the config's"):
        checkpoint.load(tmp_path / "model")


def test_an_encoder_with_tied_weights_is_kept(tmp_path: Path) -> None:
    """T5 has one embedding under two names, and safetensors refuses tensors that share memory."""
    from transformers import T5Config, T5EncoderModel

    words = tokenizer()
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    frozen = FrozenText(T5EncoderModel(T5Config(vocab_size=len(words), **shape)))
    text = PretrainedTextConfig(name="t5", length=12)
    config = LDMConfig(
        modalities=("text",), channels=(8, 16), attention=(False, True), head_dim=8, token_width=16, text=text
    )
    made = LDM(config, stage(), tokenizer=words, frozen_text=frozen).eval()
    checkpoint.save(made, tmp_path / "model")
    loaded = checkpoint.load(tmp_path / "model")
    with torch.no_grad():
        tokens = made.embed(made.null(1))["text_tokens"]
        torch.testing.assert_close(loaded.embed(made.null(1))["text_tokens"], tokens)


def test_a_pretrained_encoder_is_frozen_and_travels_with_the_checkpoint(pretrained: Path, tmp_path: Path) -> None:
    text = PretrainedTextConfig(name=str(pretrained), length=12)
    config = LDMConfig(
        modalities=("text",), channels=(8, 16), attention=(False, True), head_dim=8, token_width=16, text=text
    )
    made = checkpoint.build(config, stage(), seed=0, tokenizer=tokenizer_of(text, list))
    assert isinstance(made, LDM)
    assert made.text_projection is not None
    assert not any(p.requires_grad for p in made.text_encoder.parameters())  # type: ignore[union-attr]
    made.train()
    conditions = made.null(1)
    with torch.no_grad():
        tokens = made.embed(conditions)["text_tokens"]
        assert torch.equal(tokens, made.embed(conditions)["text_tokens"])  # no dropout
    assert tokens.shape == (1, 12, 16)
    checkpoint.save(made, tmp_path / "model")
    loaded = checkpoint.load(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(loaded.embed(conditions)["text_tokens"], tokens)
