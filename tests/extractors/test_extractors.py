"""Published networks without their weights: key lists, topology against torchvision, resizes, and what is refused."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import CLASS_INDEX, FACE_PARSING_CLASSES
from raygen.extractors.base import load_features, load_parser
from raygen.extractors.config import InceptionConfig, PublishedParserConfig
from raygen.extractors.face_parsers import BiSeNet, ParseNet, PublishedNetwork, fill, load_published, read_weights
from raygen.extractors.inception import FILE, Inception2015, InceptionFeatures, load_inception, resize

CPU = torch.device("cpu")
State = dict[str, Tensor]


def empty(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def random_state(make: Callable[[], nn.Module], seed: int = 0) -> State:
    """Weights that keep a signal alive through many layers; norms with statistics that are not the default ones."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in empty(make).state_dict().items():
        shape = tuple(value.shape)
        noise = torch.randn(shape, generator=random)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.int64)
        elif name.endswith("running_var"):
            state[name] = 1 + 0.2 * torch.rand(shape, generator=random)
        elif len(shape) > 1:
            state[name] = noise * (2 / value[0].numel()) ** 0.5
        else:
            state[name] = (1 + 0.1 * noise) if name.endswith("weight") else 0.1 * noise
    return state


def images(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), generator=random, dtype=torch.uint8)


# --- parsers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "entries", "parameters", "checksum"),
    [
        (ParseNet, 136, 1_944_355, "586190fa6127cafa1af8b2767ac883772ae7263455f3f8c62f739a776e32acfd"),
        (BiSeNet, 191, 13_300_416, "089c1094f2e7062f7cc04d87ff7f3ce5e83201634975bdb58bd74ea684852f35"),
    ],
)
def test_parameters_are_named_and_shaped_as_published(
    make: Callable[[], nn.Module], entries: int, parameters: int, checksum: str
) -> None:
    network = empty(make)
    lines = [f"{name} {list(value.shape)}" for name, value in sorted(network.state_dict().items())]
    assert len(lines) == entries
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == checksum


@pytest.fixture(scope="module")
def parsenet() -> State:
    return random_state(ParseNet)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "legacy", "nested"])
def test_a_file_of_weights_is_loaded_and_its_digest_recorded(tmp_path: Path, parsenet: State, kind: str) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(parsenet, path)
    else:
        document = {"state_dict": parsenet, "epoch": 3} if kind == "nested" else parsenet
        torch.save(document, path, _use_new_zipfile_serialization=kind != "legacy")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    parser = load_published("parsenet", str(path), digest[:12].upper(), CPU)
    assert parser.sha256 == digest == parser.protocol()["sha256"]
    assert not parser.network.training
    for name, value in parser.network.state_dict().items():
        assert torch.equal(value, parsenet[name]), name


def test_other_weights_are_refused_by_name(parsenet: State) -> None:
    name = "center.conv1.0.weight"
    wrong = {
        "missing": {k: v for k, v in parsenet.items() if k != name},
        "no parameter": {**parsenet, "extra": torch.zeros(1)},
        "shape": {**parsenet, name: torch.zeros(1, 2)},
        "int64": {**parsenet, name: torch.zeros(256, 128, 3, 3, dtype=torch.int64)},
        "not finite": {**parsenet, name: torch.full((256, 128, 3, 3), torch.nan)},
    }
    for words, state in wrong.items():
        with pytest.raises(InputError, match=words) as caught:
            fill(ParseNet, state, "file")
        assert caught.value.reason == "weights"
    with pytest.raises(InputError):
        fill(BiSeNet, parsenet, "file")
    half = fill(ParseNet, {k: v.half() if v.is_floating_point() else v for k, v in parsenet.items()}, "file")
    assert {p.dtype for p in half.parameters()} == {torch.float32}


class Surprise:
    """Runs when it is unpickled by a reader that runs things."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a file of weights was run",)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    torch.save({"a": torch.zeros(1000)}, good)
    torch.save({"a": Surprise()}, tmp_path / "code.pth")
    torch.save({"a": [torch.zeros(1)]}, tmp_path / "list.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:-400])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 64)
    for name in ("code.pth", "list.pth", "tensor.pth", "cut.pth", "empty.pth", "noise.safetensors"):
        with pytest.raises(InputError) as caught:
            read_weights(tmp_path / name)
        assert caught.value.reason == ("unsafe" if name == "code.pth" else "weights"), name
    with pytest.raises(InputError, match="not 00000000"):
        read_weights(good, "00000000")
    for digits in ("", "abc", "not-a-digest"):
        with pytest.raises(ConfigError, match="hexadecimal"):
            read_weights(good, digits)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_weights(tmp_path / "none.pth")


def test_labels_come_at_the_size_of_the_picture(tmp_path: Path, parsenet: State) -> None:
    torch.save(parsenet, tmp_path / "w.pth")
    parser = load_parser(PublishedParserConfig(kind="parsenet", weights=str(tmp_path / "w.pth")), CPU)
    labels = parser.parse(images(1, 40, 24))
    assert labels.shape == (1, 40, 24)
    assert labels.dtype == torch.uint8
    assert len(labels.unique()) > 1
    assert int(labels.max()) <= 18


def test_bisenet_has_another_order_inside_and_the_official_one_outside() -> None:
    """A head that always wins for one class of face-parsing.PyTorch must come out as that class by name."""
    state = random_state(BiSeNet)
    state["conv_out.conv.bn.weight"].zero_()
    state["conv_out.conv.bn.bias"].fill_(1)
    state["conv_out.conv_out.weight"].zero_()
    state["conv_out.conv_out.weight"][FACE_PARSING_CLASSES.index("hair")] = 1
    state["conv_out16.conv_out.weight"].fill_(9)  # the other two outputs have no say
    parser = PublishedNetwork("bisenet", fill(BiSeNet, state, "file"), "0" * 64)
    assert parser.parse(images(1, 16, 16)).unique().tolist() == [CLASS_INDEX["hair"]]
    assert "remapped" in parser.protocol()["label_order"]


def test_the_trunk_of_bisenet_is_torchvisions_resnet() -> None:
    models = pytest.importorskip("torchvision.models")
    state = random_state(BiSeNet)
    other = models.resnet18()
    trunk = {k.removeprefix("cp.resnet."): v for k, v in state.items() if k.startswith("cp.resnet.")}
    assert sorted(other.load_state_dict(trunk, strict=False).missing_keys) == ["fc.bias", "fc.weight"]
    other.fc = nn.Identity()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        deepest = fill(BiSeNet, state, "file").cp.resnet(x)[2]
        torch.testing.assert_close(deepest.mean(dim=(2, 3)), other.eval()(x), rtol=1e-4, atol=1e-4)


class Bands(nn.Module):
    """Class `i` in column `i`, whatever it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(19)[None, :, None].expand(len(x), 19, 19, 19)


def test_every_class_is_remapped_by_its_name() -> None:
    official = PublishedNetwork("parsenet", Bands(), "0" * 64).parse(images(9, 19, 19))
    assert official.shape == (9, 19, 19)
    assert official[8, 3].tolist() == list(range(19))
    other = PublishedNetwork("bisenet", Bands(), "0" * 64).parse(images(2, 19, 19))
    assert other[1, 7].tolist() == [CLASS_INDEX[name] for name in FACE_PARSING_CLASSES]


class Sees(nn.Module):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return torch.zeros(len(x), 19, 8, 8)


@pytest.mark.parametrize("side", [128, 700])
def test_parsers_see_what_pillow_would_have_shown_them(side: int) -> None:
    picture = images(1, side, side)
    pillow = Image.fromarray(picture[0].numpy())
    net = Sees()
    PublishedNetwork("parsenet", net, "0" * 64).parse(picture)
    nearest = np.asarray(pillow.resize((512, 512), Image.Resampling.NEAREST), dtype=np.float32)
    np.testing.assert_allclose(net.seen[0].movedim(0, -1), (nearest / 255 - 0.5) / 0.5, atol=1e-6)
    PublishedNetwork("bisenet", net, "0" * 64).parse(picture)
    bilinear = np.asarray(pillow.resize((512, 512), Image.Resampling.BILINEAR), dtype=np.float32)
    grey = (net.seen[0].movedim(0, -1).numpy() * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]) * 255
    assert np.abs(grey - bilinear).max() <= 1.1  # Pillow rounds twice


# --- Inception ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception() -> State:
    return random_state(Inception2015)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory, inception: State) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("hub") / FILE
    torch.save({k: v for k, v in inception.items() if not k.endswith("num_batches_tracked")}, path)
    yield path
    path.unlink()


def patched(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torchvision's Inception the one of 2015 by other pools, knowing nothing of how ours is written."""
    module = pytest.importorskip("torchvision.models.inception")

    class Functions:
        last = False

        def __getattr__(self, name: str) -> Any:
            return getattr(F, name)

        def avg_pool2d(self, x: Tensor, **how: int) -> Tensor:
            return F.max_pool2d(x, **how) if self.last else F.avg_pool2d(x, **how, count_include_pad=False)

    functions = Functions()
    block = network.get_submodule("Mixed_7c")
    block.register_forward_pre_hook(lambda *_: setattr(functions, "last", True))
    block.register_forward_hook(lambda *_: setattr(functions, "last", False))
    monkeypatch.setattr(module, "F", functions)


def test_inception_is_torchvisions_with_the_pools_of_2015(inception: State, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        other = models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    assert list(other.state_dict()) == list(inception)
    assert len(inception) == 566
    assert len([name for name in inception if not name.endswith("num_batches_tracked")]) == 472
    other.load_state_dict(inception, assign=True)
    other.fc = nn.Identity()
    other.eval()
    ours = fill(Inception2015, inception, "file")
    x = resize(images(1, 64, 64), "fid@clean")
    with torch.inference_mode():
        found, plain = ours(x), other(x)
        patched(other, monkeypatch)
        truth = other(x)
    assert found.shape == (1, 2048)
    spread = float(truth.std())
    assert float((found - truth).abs().max()) < 1e-4 * spread
    assert float((found - plain).abs().max()) > 0.1 * spread  # so the comparison would notice


def test_features_and_logits_are_torch_fidelitys(inception_file: Path) -> None:
    """Over the same file and by its own exact resize; then the bias must make a difference."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    wanted = ["2048", "logits_unbiased", "logits"]
    with torch.random.fork_rng():
        other = fidelity.FeatureExtractorInceptionV3(
            "inception-v3-compat", wanted, feature_extractor_weights_path=str(inception_file)
        ).eval()
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    ours = load_inception(str(inception_file), "fid@tf1", digest, CPU)
    pictures = images(2, 64, 80)
    with torch.inference_mode():
        truth = [part.flatten(1) for part in other(pictures.movedim(-1, 1).contiguous())]
    features, logits = ours.features(pictures), ours.logits(pictures)
    assert logits.shape == (2, 1008)
    assert logits.dtype == torch.float32
    for found, true in ((features, truth[0]), (logits, truth[1])):
        assert float((found - true).abs().max()) < 1e-4 * float(true.std())
    assert float((logits - truth[2]).abs().max()) > 1e-2 * float(truth[2].std())
    assert torch.equal(ours.logits_of(features), logits)


def test_only_the_published_file_is_called_fid(inception: State, inception_file: Path) -> None:
    with pytest.raises(InputError, match="not 6726825d") as caught:
        load_inception(str(inception_file), "fid@clean", None, CPU)
    assert caught.value.reason == "weights"
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    config = InceptionConfig(weights=str(inception_file), protocol="fid@tf1", sha256=digest)
    features = load_features(config, CPU)
    assert features.sha256 == digest
    assert features.name == f"inception-{digest[:8]}:tf1"
    assert features.metric == f"fd:inception-{digest[:8]}:tf1"
    vectors = features.features(images(1, 48, 48))
    assert vectors.shape == (1, 2048)
    assert vectors.dtype == torch.float32
    assert features.protocol()["input"].startswith("299 px TF1")
    published = InceptionFeatures(fill(Inception2015, inception, "file"), "fid@clean", "6726825d" + "0" * 56)
    assert (published.metric, published.name) == ("fid@clean", "inception-2015:clean")


def test_the_cache_of_torch_is_looked_into_and_nothing_is_fetched(
    tmp_path: Path, inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(ConfigError) as caught:
        load_inception("hub", "fid@clean", None, CPU)
    assert str(tmp_path / "checkpoints" / FILE) in str(caught.value)
    assert "weights" in str(caught.value)
    assert "kind: small" in str(caught.value)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / FILE).symlink_to(inception_file)
    with pytest.raises(InputError, match="6726825d"):
        load_inception("hub", "fid@clean", None, CPU)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (299, 299), (400, 333)])
def test_clean_is_pillows_bicubic_on_floats(height: int, width: int) -> None:
    picture = images(1, height, width)
    found = resize(picture, "fid@clean")[0] * 128 + 128
    for channel in range(3):
        grey = Image.fromarray(picture[0, ..., channel].numpy().astype(np.float32))
        truth = np.asarray(grey.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
        np.testing.assert_allclose(found[channel], truth, atol=1e-2)


@pytest.mark.parametrize(("height", "width"), [(64, 50), (299, 299), (320, 401)])
def test_tf1_takes_pixels_from_the_corner(height: int, width: int) -> None:
    picture = images(1, height, width)
    values = picture[0].numpy().astype(np.float64)
    found = (resize(picture, "fid@tf1")[0] * 128 + 128).movedim(0, -1).numpy()
    for y, x in [(0, 0), (1, 7), (150, 151), (298, 298), (298, 3)]:
        v, u = y * height / 299, x * width / 299
        top, left = int(v), int(u)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        a, b = v - top, u - left
        truth = (
            (1 - a) * (1 - b) * values[top, left]
            + (1 - a) * b * values[top, right]
            + a * (1 - b) * values[bottom, left]
            + a * b * values[bottom, right]
        )
        np.testing.assert_allclose(found[y, x], truth, atol=1e-2)


def test_pytorch_scales_before_and_takes_centres() -> None:
    picture = images(1, 60, 60)
    found = resize(picture, "fid@pytorch")[0]
    np.testing.assert_allclose(found[:, 0, 0], picture[0, 0, 0] / 127.5 - 1, atol=1e-6)
    assert (found - resize(picture, "fid@tf1")[0]).abs().max() > 0.1
    white = torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    assert float(resize(white, "fid@pytorch").max()) == pytest.approx(1.0)
    assert float(resize(white, "fid@clean").max()) == pytest.approx(127 / 128)
