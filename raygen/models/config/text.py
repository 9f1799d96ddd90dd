"""Text encoders and their vocabularies."""

from typing import Annotated, Literal

from pydantic import Field

from raygen.core.config import Config
from raygen.core.location import RelativeLocation

__all__ = ["PretrainedTextConfig", "TextConfig", "TransformerTextConfig"]


class TransformerTextConfig(Config):
    """A transformer trained with the denoiser; its width is the denoiser's `token_width`.

    `vocabulary`: `learned` from the training texts, a `vocab.txt`, a folder that has one or a tokenizer.json, or a name
    such as `bert-base-uncased`. The published models have 32 layers and do not mask padding.
    """

    kind: Literal["transformer"] = "transformer"
    vocabulary: RelativeLocation = Field(
        "learned",
        description="`learned` from the training texts, a vocab.txt file, "
        "a folder with one or with a tokenizer.json, or the name of a tokenizer on the hub",
    )
    vocabulary_size: int | None = Field(
        None, ge=5, description="size of the vocabulary, to count parameters where the vocabulary is not available"
    )
    length: int = Field(
        77, ge=4, le=512, description="number of tokens of a text; longer texts are truncated, shorter ones padded"
    )
    layers: int = Field(32, ge=1, le=64, description="number of transformer layers")
    heads: int = Field(8, ge=1, description="attention heads per layer")
    head_dim: int = Field(64, ge=4, description="channels per attention head")
    inner: int = Field(2560, ge=8, description="width of the feed-forward layers")


class PretrainedTextConfig(Config):
    """A frozen text encoder of the `transformers` library, with its own tokenizer."""

    kind: Literal["pretrained"] = "pretrained"
    name: RelativeLocation = Field(..., description="folder of a text encoder, or its name on the Hugging Face hub")
    length: int = Field(
        77, ge=4, le=512, description="number of tokens of a text; longer texts are truncated, shorter ones padded"
    )


TextConfig = Annotated[TransformerTextConfig | PretrainedTextConfig, Field(discriminator="kind")]
