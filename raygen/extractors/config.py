"""Settings of the networks that look at pictures, without the networks: nothing here imports torch."""

import math
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from raygen.core.config import Config
from raygen.core.location import LocalInput, Location
from raygen.store.class_ids import LabelOrder

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
    "LandmarksConfig",
    "MaskLandmarksConfig",
    "ONNXEmbedderConfig",
    "ONNXLandmarkerConfig",
    "ONNXParserConfig",
    "PackageConfig",
    "PackageEmbedderConfig",
    "PackageKind",
    "PackageLandmarkerConfig",
    "PackageParserConfig",
    "PackageScorerConfig",
    "ParserConfig",
    "PublishedParserConfig",
    "TorchScriptConfig",
    "VGGFace2Config",
]


#: Channels of a convolution that is normalised in eight groups.
GroupedChannels = Annotated[int, Field(ge=8, multiple_of=8)]
#: Description of the setting `margin` of landmark networks.
MARGIN: Final = (
    "side of the square around the face that the network sees, over that of an aligned crop of ArcFace; the whole "
    "picture where the mask gives no landmarks"
)


def _increasing(values: tuple[float, float]) -> tuple[float, float]:
    """`ValueError` where these are not a lower and a higher number."""
    if not all(map(math.isfinite, values)) or values[0] >= values[1]:
        raise ValueError("must be a lower and a higher number, such as [-1, 1]")
    return values


#: A sha256 or its first digits; few would fit any file.
SHA256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{8,64}$")]


class BundledNetworkConfig(Config):
    """A bundled network, or one of its kind from a folder."""

    kind: Literal["small"] = "small"
    folder: Location = Field("bundled", description="folder of a trained network, or `bundled`")


class PublishedParserConfig(Config):
    """A parser that the field uses, from weights the user has."""

    kind: Literal["parsenet", "bisenet"]
    weights: LocalInput = Field(..., description="state dict or safetensors file")
    sha256: SHA256 | None = Field(None, description="sha256 that the file must have")


#: What a network of a package does; see `raygen.extractors.packages.Extractor`.
PackageKind = Literal["embedder", "parser", "landmarker", "scorer"]


class PackageConfig(Config):
    """A network that an installed package offers in the entry-point group `raygen.extractors`."""

    offers: ClassVar[PackageKind]

    kind: Literal["package"] = "package"
    name: str = Field(
        ...,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the network in the entry-point group `raygen.extractors` of an installed package",
    )
    sha256: SHA256 | None = Field(
        None, description="sha256 that the network must have, or its first digits; default: any network of this name"
    )


class PackageParserConfig(PackageConfig):
    """A face parser of an installed package."""

    offers = "parser"


class PackageEmbedderConfig(PackageConfig):
    """An embedder of an installed package."""

    offers = "embedder"


class PackageLandmarkerConfig(PackageConfig):
    """A landmark network of an installed package, which refines the landmarks of the mask."""

    offers = "landmarker"

    margin: float = Field(1.0, ge=0.5, le=4, description=MARGIN)


class PackageScorerConfig(PackageConfig):
    """A network of an installed package that gives each picture a number."""

    offers = "scorer"


class ONNXParserConfig(Config):
    """A parser as an ONNX model: pixels [B, 3, size, size] -> logits [B, 19, h, w]. Needs `raygen[onnx]`."""

    kind: Literal["onnx"] = "onnx"
    weights: LocalInput = Field(..., description="ONNX file; data that it keeps in other files is not read")
    sha256: SHA256 | None = Field(None, description="sha256 that the file must have")
    labels: LabelOrder = Field(
        ...,
        description="order of the 19 classes that the model gives: celebamask, or face_parsing as BiSeNet of "
        "face-parsing.PyTorch has it",
    )
    size: int = Field(512, ge=16, le=2048, description="side of the input of the model, pixels")
    channels: Literal["rgb", "bgr"] = Field("rgb", description="order of the colour channels")
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406), description="subtracted from pixels in 0..1, by channel; default: that of ImageNet"
    )
    std: tuple[float, float, float] = Field(
        (0.229, 0.224, 0.225), description="what pixels are divided by then, by channel; default: that of ImageNet"
    )

    @model_validator(mode="after")
    def _divides_by_numbers_above_zero(self) -> "ONNXParserConfig":
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ValueError("mean and std must be finite, and std above 0")
        return self


class MaskLandmarksConfig(Config):
    """Landmarks from the mask of a picture alone."""

    kind: Literal["mask"] = "mask"


#: Numbers of the points of a network that are averaged to one landmark.
PointNumbers = Annotated[tuple[Annotated[int, Field(ge=0, le=4095)], ...], Field(min_length=1)]


class ONNXLandmarkerConfig(Config):
    """A landmark network as an ONNX model: pixels [1, 3, size, size] -> points. Needs `raygen[onnx]`."""

    kind: Literal["onnx"] = "onnx"
    weights: LocalInput = Field(..., description="ONNX file; data that it keeps in other files is not read")
    sha256: SHA256 | None = Field(None, description="sha256 that the file must have")
    size: int = Field(112, ge=16, le=1024, description="side of the input of the model, pixels")
    channels: Literal["rgb", "bgr"] = Field("rgb", description="order of the colour channels")
    value_range: Annotated[tuple[float, float], AfterValidator(_increasing)] = Field(
        (-1.0, 1.0), description="values of black and white in the input, such as [0, 255]"
    )
    coordinates: Literal["fraction", "signed", "pixels"] = Field(
        "fraction",
        description="what the first output [1, n, 2] or [1, 2n] means. fraction: 0 to 1 over the input; signed: -1 to "
        "1; pixels: pixels of the input",
    )
    points: Annotated[tuple[PointNumbers, ...], Field(min_length=5, max_length=5)] = Field(
        ((0,), (1,), (2,), (3,), (4,)),
        description="numbers of the model's points that are averaged to the left eye, right eye, nose, left and right "
        "corner of the mouth, as they lie in the picture",
    )
    margin: float = Field(1.0, ge=0.5, le=4, description=MARGIN)


LandmarksConfig = Annotated[
    MaskLandmarksConfig | ONNXLandmarkerConfig | PackageLandmarkerConfig, Field(discriminator="kind")
]


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
    sha256: SHA256 | None = Field(
        None, description="sha256 that the file must have, or its first digits; default: that of the published file"
    )


ParserConfig = Annotated[
    BundledNetworkConfig | PublishedParserConfig | ONNXParserConfig | PackageParserConfig, Field(discriminator="kind")
]


FeatureConfig = Annotated[BundledNetworkConfig | InceptionConfig | PackageEmbedderConfig, Field(discriminator="kind")]


Trunk = Literal["vgg", "alex"]


class LPIPSConfig(Config):
    """Learned perceptual distance (Zhang et al. 2018, v0.1), and its weight in a loss."""

    #: What can be done without the weights.
    without: ClassVar[str] = ", or leave out `lpips`"

    weight: float = Field(1.0, gt=0, description="weight of the distance in a loss")
    weights: LocalInput = Field(
        "hub", description="torchvision's file of the network, or `hub` for torchvision's own cache"
    )
    sha256: SHA256 | None = Field(
        None, description="sha256 that the file must have, or its first digits; default: that of the published file"
    )
    network: Trunk = Field("vgg", description="vgg: VGG-16, usual in losses; alex: AlexNet, usual in evaluations")


class ClipConfig(Config):
    """A CLIP model as `transformers` saves it."""

    kind: Literal["clip"] = "clip"
    folder: Location = Field(
        ..., description="folder with config.json, weights, preprocessor and tokenizer of a CLIP model"
    )
    sha256: SHA256 | None = Field(
        None, description="sha256 that the weights file must have, or its first digits; default: any file"
    )


class VGGFace2Config(Config):
    """The ResNet-50 of VGGFace2, from weights the user has."""

    kind: Literal["vggface2"] = "vggface2"
    weights: LocalInput = Field(
        ..., description="state dict, safetensors or pickled arrays; its classifier is not read"
    )
    sha256: SHA256 | None = Field(None, description="sha256 that the file must have")


class TorchScriptConfig(Config):
    """An embedder in a TorchScript file: pixels [B, 3, H, W] in -1..1 -> features. The file is code that is run."""

    kind: Literal["torchscript"] = "torchscript"
    weights: LocalInput = Field(..., description="TorchScript file")
    trust: bool = Field(False, description="true: run the code in the file, which is a program")
    sha256: SHA256 | None = Field(None, description="complete sha256 of the trusted file")

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
    sha256: SHA256 | None = Field(None, description="sha256 that the file must have")
    channels: Literal["rgb", "bgr"] = Field("rgb", description="order of the colour channels")


AnyEmbedder = Annotated[
    BundledNetworkConfig | VGGFace2Config | TorchScriptConfig | ONNXEmbedderConfig | PackageEmbedderConfig,
    Field(discriminator="kind"),
]


class FaceEmbedderConfig(Config):
    """A face embedder, and the part of the picture that it sees."""

    network: AnyEmbedder = Field(
        default_factory=BundledNetworkConfig, description="network that embeds faces, chosen by its `kind`"
    )
    region: Literal["picture", "face", "aligned"] = Field(
        "picture",
        description="what is embedded. picture: all of it; face: the bounding box of the face in its mask; aligned: a "
        "crop on the template of ArcFace, by the column `landmarks` or else those of the mask, which networks trained "
        "on aligned faces need",
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
