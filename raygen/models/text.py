"""Text -> token ids -> tokens: WordPiece vocabularies and the encoders that read them.

A vocabulary is learned from the training texts, read from a file, or loaded by name. Encoders are the transformer that
latent diffusion trains with its UNet, or frozen ones of the `transformers` library.

Sources: Rombach et al. 2022 (text-to-image transformer); Devlin et al. 2019 (WordPiece).
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from raygen.core.documents import load_json
from raygen.core.errors import ConfigError, InputError
from raygen.core.hashing import digest
from raygen.core.precision import copy_parameters
from raygen.models.config.text import PretrainedTextConfig, TransformerTextConfig
from raygen.models.weight_variants import readable

__all__ = [
    "FrozenText",
    "TextEncoder",
    "Tokenizer",
    "empty_encoder",
    "learn_vocabulary",
    "pretrained_encoder",
    "tokenizer_of",
]


SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILE: Final = "tokenizer.json"
WORDS: Final = "vocab.txt"
LARGEST: Final = 30_000


# --- texts -> ids -------------------------------------------------------------------------------------------


class Tokenizer:
    """Texts -> ids int64 [n, length], always filled to the same length."""

    def __init__(self, backend: Backend, length: int, pad: str = SPECIAL[0]) -> None:
        index = backend.token_to_id(pad)
        if index is None:
            raise ConfigError(f"the vocabulary has no {pad}")
        backend.enable_truncation(length)
        backend.enable_padding(length=length, pad_id=index, pad_token=pad)
        self.backend, self.length, self.pad = backend, length, pad

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """ids int64 [n, length]."""
        encodings = self.backend.encode_batch(list(texts))
        return torch.tensor([e.ids for e in encodings], dtype=torch.int64).reshape(len(encodings), self.length)

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size())

    @property
    def digest(self) -> str:
        """sha256 of the vocabulary and all settings."""
        return digest(self.backend.to_str().encode())

    def same_as(self, other: "Tokenizer") -> bool:
        """Whether both give the same ids for every text."""
        return self.backend.to_str() == other.backend.to_str()

    @classmethod
    def wordpiece(cls, words: Sequence[str], length: int, **normalization: bool | None) -> "Tokenizer":
        """BERT's way ([CLS] text [SEP]) over `words` in the order of their ids.

        Lower case without accents, unless `normalization` has other options of `BertNormalizer`.
        """
        vocabulary = {word: i for i, word in enumerate(words)}
        if missing := [s for s in SPECIAL[:4] if s not in vocabulary]:
            raise ConfigError(f"the vocabulary has no {missing[0]}")
        backend = Backend(WordPiece(vocabulary, unk_token=SPECIAL[1]))
        backend.normalizer = BertNormalizer(**{"lowercase": True, **normalization})  # type: ignore[arg-type]
        backend.pre_tokenizer = BertPreTokenizer()
        backend.post_processor = TemplateProcessing(
            single=f"{SPECIAL[2]} $A {SPECIAL[3]}", special_tokens=[(s, vocabulary[s]) for s in SPECIAL[2:4]]
        )
        return cls(backend, length)

    def save(self, folder: Path) -> None:
        """`tokenizer.json`, which `transformers` opens too."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(self.backend.to_str(pretty=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer that `save` wrote; `InputError` (`checkpoint`) where it is damaged."""
        try:
            backend = Backend.from_str((folder / FILE).read_text(encoding="utf-8"))
            padding: dict[str, Any] = backend.padding or {}
            return cls(backend, int(padding["length"]), str(padding["pad_token"]))
        except Exception as error:  # the library raises bare exceptions
            raise InputError(f"{folder / FILE}: {error}", reason="checkpoint") from error


def learn_vocabulary(texts: Iterable[str], largest: int = LARGEST) -> list[str]:
    """The words of `texts` by frequency, then alphabetically, and every letter, so that nothing is unknown.

    The same texts give the same list in any order.
    """
    split, lower = BertPreTokenizer(), BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text, times in Counter(texts).items():
        for word, _ in split.pre_tokenize_str(lower.normalize_str(text)):
            counts[word] += times
    letters = sorted({letter for word in counts for letter in word})
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    words = [w for w, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if len(w) > 1]
    return [*SPECIAL, *pieces, *words][:largest]


def tokenizer_of(config: TransformerTextConfig | PretrainedTextConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer of a config; `texts` is called only where the vocabulary is learned."""
    if isinstance(config, PretrainedTextConfig):
        return _from_transformers(config.name, config.length)
    if config.vocabulary == "learned":
        return Tokenizer.wordpiece(learn_vocabulary(texts()), config.length)
    path = Path(config.vocabulary)
    folder = path.parent if path.name in (FILE, WORDS) else path
    if (folder / FILE).is_file():
        return _from_file(folder, config.length)
    file = path / WORDS if path.is_dir() else path
    if file.is_file():
        words = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return Tokenizer.wordpiece(words, config.length, **_normalization(folder, words))
    return _from_transformers(config.vocabulary, config.length)


def _from_file(folder: Path, length: int) -> Tokenizer:
    """The tokenizer.json of a folder, which says all but the padding."""
    pad = _tokenizer_config(folder).get("pad_token") or SPECIAL[0]
    try:
        backend = Backend.from_file(str(folder / FILE))
    except Exception as error:  # the library raises bare exceptions
        raise ConfigError(f"{folder / FILE}: no tokenizer ({error})") from error
    return Tokenizer(backend, length, str(pad["content"] if isinstance(pad, dict) else pad))


def _normalization(folder: Path, words: Sequence[str]) -> dict[str, bool | None]:
    """Options of `BertNormalizer`, as the tokenizer_config.json of a folder has them.

    Without it a vocabulary is cased if a word has a capital letter, which lower-cased texts would never give.
    """
    document = _tokenizer_config(folder)
    cased = any(re.search("[A-Z]", word) for word in words if not (word.startswith("[") and word.endswith("]")))
    lowercase = document.get("do_lower_case")
    return {
        "lowercase": not cased if lowercase is None else bool(lowercase),
        "strip_accents": document.get("strip_accents"),
        "handle_chinese_chars": document.get("tokenize_chinese_chars", True),
    }


def _tokenizer_config(folder: Path) -> Mapping[str, Any]:
    """The tokenizer_config.json of a folder; empty where there is none."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        document: dict[str, Any] = load_json(path.read_text(encoding="utf-8"))
        return {**document}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a tokenizer's configuration ({error})") from error


def _from_transformers(name: str, length: int) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise _absent("tokenizer", name, error) from error
    return Tokenizer(tokenizer.backend_tokenizer, length, str(tokenizer.pad_token))


def _absent(part: str, name: str, error: Exception) -> ConfigError:
    if "trust_remote_code" in str(error):  # transformers refuses; without its `trust_remote_code=False` it would ask
        return ConfigError(
            f"{name}: this {part} needs program code of its own, which is never run; choose one whose class "
            "`transformers` has itself"
        )
    reason = str(error).strip().partition("\n")[0][:200]
    return ConfigError(f"{name}: no {part} there, neither as a folder nor in the hub's local cache ({reason})")


# --- ids -> tokens ------------------------------------------------------------------------------------------


class TextEncoder(nn.Module):
    """Token ids [B, L] -> tokens [B, L, width]; pre-norm layers, learned positions, padding read like any token."""

    def __init__(self, config: TransformerTextConfig, width: int, words: int) -> None:
        super().__init__()
        self.config = {"kind": "transformer", "width": width, "words": words}
        self.token_embedding = nn.Embedding(words, width)
        self.position_embedding = nn.Embedding(config.length, width)
        self.layers = nn.ModuleList(
            _Layer(width, config.heads, config.head_dim, config.inner) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Of every position."""
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        tokens: Tensor = self.norm(x)
        return tokens


class _Layer(nn.Module):
    """Self-attention and a feed-forward network, each with a residual connection."""

    def __init__(self, width: int, heads: int, head_dim: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.to_out = nn.Linear(heads * head_dim, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        normed = self.norm1(x)
        parts = (layer(normed).unflatten(-1, (self.heads, -1)) for layer in (self.to_q, self.to_k, self.to_v))
        q, k, v = (part.transpose(1, 2) for part in parts)  # [B, heads, L, head_dim]
        x = x + self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result


class FrozenText(nn.Module):
    """A text encoder of `transformers`: ids [B, L] -> its last hidden state [B, L, width]. Never trained.

    `config` holds those settings of the network that its numbers depend on, and names of parameters are the same for
    every version of `transformers`: before 5 it kept CLIP's text model one level deeper.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "kind": "pretrained",
            "class": type(network).__name__,
            "config": _network_settings(network.config),
        }
        self.width = int(network.config.hidden_size)
        self.network = getattr(network, "text_model", network).eval().requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        """Of every position."""
        tokens: Tensor = self.network(input_ids=ids).last_hidden_state
        return tokens

    def train(self, mode: bool = True) -> "FrozenText":
        """Stays in evaluation mode: it has dropout, and is not trained."""
        return super().train(False)


#: The settings that a network's hidden states depend on, by the `model_type` of its configuration.
_BERT: Final = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)
SETTINGS: Final[Mapping[str, Sequence[str]]] = {
    "clip_text_model": (*_BERT[:7], "layer_norm_eps"),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "t5": (
        "vocab_size",
        "d_model",
        "d_kv",
        "d_ff",
        "num_layers",
        "num_heads",
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
        "layer_norm_epsilon",
        "feed_forward_proj",
        "pad_token_id",
    ),
}
#: What the configuration of any other network also holds, and what changes with the version of the library.
OTHERS: Final = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def _network_settings(config: Any) -> dict[str, Any]:
    """The settings in a configuration that the network's numbers depend on; of an unknown network, all plain ones."""
    names = SETTINGS.get(config.model_type)
    if names is not None:
        return {name: getattr(config, name) for name in names}
    # Through JSON, so that it equals what is read back from a checkpoint.
    document: dict[str, Any] = json.loads(json.dumps(config.to_diff_dict(), default=str))
    return {name: value for name, value in document.items() if name not in OTHERS}


def pretrained_encoder(name: str) -> FrozenText:
    """The encoder half of a model by folder or name; `ConfigError` where it cannot be loaded. No code of it is run."""
    from transformers import AutoConfig, AutoModel, CLIPTextModel, T5EncoderModel

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        kinds = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}
        kind = kinds.get(config.model_type, AutoModel)
        with readable(Path(name)) if Path(name).is_dir() else nullcontext(name) as source:
            network = kind.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
            network = copy_parameters(network.float())  # before a temporary folder goes
    except InputError as error:
        raise ConfigError(str(error).partition(": ")[2]) from error
    except Exception as error:
        raise _absent("text encoder", name, error) from error
    return FrozenText(network)


def empty_encoder(document: Mapping[str, Any]) -> FrozenText:
    """The encoder that `FrozenText.config` describes, its weights still random; `InputError` (`checkpoint`)."""
    import transformers

    try:
        kind = getattr(transformers, str(document["class"]))
        if not issubclass(kind, transformers.PreTrainedModel):
            raise TypeError(f"{document['class']} is no model")
        config = kind.config_class.from_dict(dict(document["config"]))
        return FrozenText(kind(config).float())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"text_encoder/config.json: {error}", reason="checkpoint") from error
