"""Folders with a frozen text encoder, written under one version of `transformers` and opened under another.

Needs packages of the other major version in a folder that RAYGEN_OTHER_TRANSFORMERS names: `make nightly`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

pytestmark = pytest.mark.nightly

SCRIPT = """
import sys
from pathlib import Path
import torch
import transformers
from raygen.models import checkpoint
from raygen.models.autoencoder import AutoencoderConfig, FirstStage
from raygen.models.ldm import LDM, LDMConfig
from raygen.models.text import FrozenText, PretrainedTextConfig, Tokenizer, learn_vocabulary

TEXTS = ["a face that smiles", "no hat"]
WORDS = learn_vocabulary(TEXTS)
SMALL = dict(vocab_size=len(WORDS), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
POSITIONS = dict(max_position_embeddings=20)
NETWORKS = {
    "clip": lambda: transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**SMALL, **POSITIONS, bos_token_id=2, eos_token_id=3, hidden_act="gelu")),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL, **POSITIONS, layer_norm_eps=1e-7)),
    "roberta": lambda: transformers.RobertaModel(
        transformers.RobertaConfig(**SMALL, **POSITIONS, pad_token_id=0, type_vocab_size=1)),
    "t5": lambda: transformers.T5EncoderModel(transformers.T5Config(
        vocab_size=len(WORDS), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu")),
    "electra": lambda: transformers.ElectraModel(
        transformers.ElectraConfig(**SMALL, **POSITIONS, embedding_size=16)),
}


def write(kind, folder):
    frozen = FrozenText(NETWORKS[kind]().float())
    draw = torch.Generator().manual_seed(0)
    for name, value in sorted(frozen.state_dict().items()):
        value.copy_(torch.randn(value.shape, generator=draw) * 0.2 if value.is_floating_point() else value)
    text = PretrainedTextConfig(name=kind, length=8)
    shape = dict(channels=(8, 16), attention=(False, True), head_dim=8, token_width=24)
    config = LDMConfig(modalities=("text",), text=text, **shape)
    stage = FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8), mid_attention=False))
    checkpoint.save(LDM(config, stage, tokenizer=Tokenizer.wordpiece(WORDS, 8), frozen_text=frozen), folder)


def read(folder):
    model = checkpoint.load(folder)
    with torch.no_grad():
        return model.text_encoder(model.tokenizer(TEXTS))


action, root = sys.argv[1], Path(sys.argv[2])
for kind in NETWORKS:
    if action == "write":
        write(kind, root / kind)
tokens = {kind: read(root / kind) for kind in NETWORKS}
torch.save({"version": transformers.__version__, **tokens}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def other() -> str:
    folder = os.environ.get("RAYGEN_OTHER_TRANSFORMERS")
    if not folder:
        pytest.skip("RAYGEN_OTHER_TRANSFORMERS is not set")
    return str(Path(folder).resolve())


def _run(action: str, root: Path, packages: str | None) -> dict[str, torch.Tensor]:
    result = root.parent / f"{action}-{root.name}-{packages is None}.pt"
    path = [*([packages] if packages else []), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    words = [sys.executable, "-c", SCRIPT, action, str(root), str(result)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded: dict[str, torch.Tensor] = torch.load(result)
    return loaded


def test_either_version_opens_what_the_other_has_written(other: str, tmp_path: Path) -> None:
    here = _run("write", tmp_path / "here", None)
    there = _run("write", tmp_path / "there", other)
    assert here.pop("version") == transformers.__version__
    assert str(there.pop("version")).partition(".")[0] != transformers.__version__.partition(".")[0]
    crossed = _run("read", tmp_path / "there", None)
    back = _run("read", tmp_path / "here", other)
    for kind, tokens in here.items():
        assert tokens.std() > 0.01, kind
        for others in (there, crossed, back):
            torch.testing.assert_close(others[kind], tokens, rtol=1e-4, atol=1e-5, msg=kind)
        for name in ("config.json", "model.safetensors"):
            ours, theirs = ((tmp_path / w / kind / "text_encoder" / name).read_bytes() for w in ("here", "there"))
            assert ours == theirs or kind == "electra", f"{kind}: {name}"
