"""Settings of the networks that look at pictures, without the networks: nothing here imports torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from raygen.core.config import Config
from raygen.core.location import LocalInput, Location

__all__ = [
    "BundledClassifierConfig",
    "BundledEmbedderConfig",
    "BundledNetworkConfig",
    "BundledParserConfig",
    "ClipConfig",
    "EmbedderConfig",
    "FaceEmbedderConfig",
    "FeatureConfig",
    "InceptionConfig",
    "LPIPSConfig",
    "ONNXEmbedderConfig",
    "ParserConfig",
    "PublishedParserConfig",
    "TorchScriptConfig",
    "VGGFace2Config",
]


#: Channels of a convolution that is normalised in eight groups.
GroupedChannels = Annotated[int, Field(ge=8, multiple_of=8)]


class BundledNetworkConfig(Config):
    """A bundled network, or one of its kind from a folder."""

    kind: Literal["small"] = "small"
    folder: Location = Field("bundled", description="folder of a trained network, or `bundled`")


class PublishedParserConfig(Config):
    """A parser that the field uses, from weights the user has."""

    kind: Literal["parsenet", "bisenet"]
    weights: LocalInput = Field(..., description="state dict or safetensors file")
    sha256: str | None = Field(None, description="sha256 that the file must have")


class InceptionConfig(Config):
    """The 2015 Inception network, the only one whose Fréchet distance is called `fid`."""

    #: What can be done without the weights.
    without: ClassVar[str] = ", or use the bundled features (kind: small), whose distance is not called fid"

    kind: Literal["inception"] = "inception"
    weights: LocalInput = Field(..., description="pt_inception-2015-12-05-6726825d.pth, or `hub` for torch's cache")
    protocol: Literal["fid@tf1", "fid@clean", "fid@pytorch"] = Field(
        "fid@clean",
        description="resize and weights of the FID: fid@clean as "
        "clean-fid, fid@pytorch as pytorch-fid, fid@tf1 as the original",
    )
    sha256: str | None = Field(
        None, description="sha256 that the file must have, or its first digits; default: that of the published file"
    )


ParserConfig = Annotated[BundledNetworkConfig | PublishedParserConfig, Field(discriminator="kind")]


FeatureConfig = Annotated[BundledNetworkConfig | InceptionConfig, Field(discriminator="kind")]


Trunk = Literal["vgg", "alex"]


class LPIPSConfig(Config):
    """Learned perceptual distance (Zhang et al. 2018, v0.1), and its weight in a loss."""

    #: What can be done without the weights.
    without: ClassVar[str] = ", or leave out `lpips`"

    weight: float = Field(1.0, gt=0, description="weight of the distance in a loss")
    weights: LocalInput = Field(
        "hub", description="torchvision's file of the network, or `hub` for torchvision's own cache"
    )
    sha256: str | None = Field(
        None, description="sha256 that the file must have, or its first digits; default: that of the published file"
    )
    network: Trunk = Field("vgg", description="vgg: VGG-16, usual in losses; alex: AlexNet, usual in evaluations")


class ClipConfig(Config):
    """A CLIP model as `transformers` saves it."""

    kind: Literal["clip"] = "clip"
    folder: Location = Field(
        ..., description="folder with config.json, weights, preprocessor and tokenizer of a CLIP model"
    )
    sha256: str | None = Field(
        None, description="sha256 that the weights file must have, or its first digits; default: any file"
    )


class VGGFace2Config(Config):
    """The ResNet-50 of VGGFace2, from weights the user has."""

    kind: Literal["vggface2"] = "vggface2"
    weights: LocalInput = Field(
        ..., description="state dict, safetensors or pickled arrays; its classifier is not read"
    )
    sha256: str | None = Field(None, description="sha256 that the file must have")


class TorchScriptConfig(Config):
    """An embedder in a TorchScript file: pixels [B, 3, H, W] in -1..1 -> features. The file is code that is run."""

    kind: Literal["torchscript"] = "torchscript"
    weights: LocalInput = Field(..., description="TorchScript file")
    trust: bool = Field(False, description="true: run the code in the file, which is a program")
    sha256: str | None = Field(None, description="complete sha256 of the trusted file")

    @model_validator(mode="after")
    def _trusted(self) -> "TorchScriptConfig":
        if not self.trust or self.sha256 is None or len(self.sha256) != 64:
            raise ValueError("a TorchScript file is code: it is run only with `trust: true` and its whole sha256")
        return self


EmbedderConfig = Annotated[BundledNetworkConfig | VGGFace2Config | TorchScriptConfig, Field(discriminator="kind")]


class ONNXEmbedderConfig(Config):
    """An embedder as an ONNX model: pixels [B, 3, H, W] in -1..1 -> features [B, D]. Needs `raygen[onnx]`."""

    kind: Literal["onnx"] = "onnx"
    weights: LocalInput = Field(..., description="ONNX file; data that it keeps in other files is not read")
    sha256: str | None = Field(None, description="sha256 that the file must have")
    channels: Literal["rgb", "bgr"] = Field("rgb", description="order of the colour channels")


AnyEmbedder = Annotated[
    BundledNetworkConfig | VGGFace2Config | TorchScriptConfig | ONNXEmbedderConfig, Field(discriminator="kind")
]


class FaceEmbedderConfig(Config):
    """A face embedder, and the part of the picture that it sees."""

    network: AnyEmbedder = Field(
        default_factory=BundledNetworkConfig, description="network that embeds faces, chosen by its `kind`"
    )
    region: Literal["picture", "face"] = Field(
        "picture", description="embed the whole picture, or the bounding box of the face in its mask"
    )
    size: int | None = Field(
        None,
        ge=16,
        le=1024,
        description="side in pixels that the region is resized to; default: the input size of the network",
    )


class BundledParserConfig(Config):
    """Shape of a small parser. Pictures of another size are resized to `image_size` and the labels back."""

    kind: Literal["parser"] = "parser"
    image_size: int = Field(64, ge=16, le=512, multiple_of=2, description="height and width of the pictures in pixels")
    channels: tuple[GroupedChannels, ...] = Field(
        (16, 32, 64, 96),
        min_length=2,
        description="channels of each level; every level after the first halves the resolution",
    )


class BundledClassifierConfig(Config):
    """Shape of a small attribute classifier. Pictures of another size are resized to `image_size`."""

    kind: Literal["classifier"] = "classifier"
    image_size: int = Field(64, ge=16, le=512, multiple_of=2, description="height and width of the pictures in pixels")
    channels: tuple[GroupedChannels, ...] = Field(
        (16, 32, 64, 96),
        min_length=2,
        max_length=6,
        description="channels of each level; every level after the first halves the resolution",
    )
    hidden: int = Field(128, ge=8, description="width of the hidden layer of the head")


class BundledEmbedderConfig(Config):
    """Shape of a small face embedder. Pictures of another size are resized to `image_size`."""

    kind: Literal["embedder"] = "embedder"
    image_size: int = Field(64, ge=16, le=512, multiple_of=2, description="height and width of the pictures in pixels")
    channels: tuple[GroupedChannels, ...] = Field(
        (16, 32, 64, 96),
        min_length=2,
        max_length=6,
        description="channels of each level; every level after the first halves the resolution",
    )
    width: int = Field(128, ge=2, description="number of values of an embedding")
