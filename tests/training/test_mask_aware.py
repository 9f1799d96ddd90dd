"""The mask-aware loss: plain at and above T, nothing outside of the mask, no gradient where nothing trains."""

import hashlib
import itertools
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raygen.core.config import parse
from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import CLASS_INDEX
from raygen.core.pixels import to_pixels
from raygen.extractors.config import BundledNetworkConfig, EmbedderConfig, TorchScriptConfig
from raygen.extractors.perceptual import DeepFeatures, load_embedder, load_perceptual
from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.conditions import ConditionDropout
from raygen.models.config.controlnet import ControlNetConfig
from raygen.models.config.ldm import LDMConfig
from raygen.models.controlnet import ControlNetLDM
from raygen.models.ldm import LDM
from raygen.training.config.losses import MaskAwareConfig, MinSNRLoss
from raygen.training.losses import DiffusionObjective, MaskAwareObjective
from raygen.training.losses.mask_aware import _boxes, _bumps, class_weights, crops, masked_distance

SIZE = 32


class Edges(DeepFeatures):
    """Two layers that look at their neighbours, one of them at half the size."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            net = nn.ModuleList([nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(4, 6, 3, padding=1, stride=2)])
        super().__init__(net, "edges", "0" * 64, [0.75, 0.25])

    def maps(self, pixels: Tensor) -> list[Tensor]:
        first, second = self.network.children()
        a = first(pixels).tanh()
        return [a, second(a)]


def stage() -> FirstStage:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FirstStage(AutoencoderConfig(image_size=SIZE, channels=(8, 8)))


def ldm(**fields: object) -> LDM:
    shape = {"channels": (16, 16), "attention": (False, True), "head_dim": 8, "token_width": 16, "constant_token": True}
    model = checkpoint.build(LDMConfig(**{**shape, **fields}), stage(), seed=0)  # type: ignore[arg-type]
    assert isinstance(model, LDM)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.unet.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return model


def batch(n: int = 4, t: tuple[int, ...] = (5, 50, 400, 900)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = ldm().latent_shape
    mask = torch.zeros(n, SIZE, SIZE, dtype=torch.uint8)
    mask[:, 8:24, 10:20] = CLASS_INDEX["skin"]
    mask[:, 12:14, 12:15] = CLASS_INDEX["l_eye"]
    return {
        "images": torch.randint(0, 256, (n, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator),
        "noise": torch.randn(n, *shape, generator=generator),
        "posterior": torch.randn(n, *shape, generator=generator),
        "t": torch.tensor(t),
        "dropout": torch.ones(n),
        "mask": mask,
        "present_mask": torch.ones(n, dtype=torch.bool),
    }


def objective(model: LDM | ControlNetLDM | None = None, **fields: object) -> MaskAwareObjective:
    config = MaskAwareConfig.model_validate(
        {"embedder": BundledNetworkConfig(), "network": BundledNetworkConfig(), "crop": 16, **fields}
    )
    return MaskAwareObjective(
        ldm() if model is None else model,
        MinSNRLoss(),
        ConditionDropout(),
        config=config,
        perceptual=Edges(),
        embedder=Edges(),
    )


def test_at_and_above_the_limit_it_is_the_plain_loss_to_the_bit() -> None:
    plain = DiffusionObjective(ldm(), MinSNRLoss(), ConditionDropout())
    given = batch(t=(100, 101, 400, 999))
    aware = objective()
    a, b = aware(given)["loss"], plain(given)["loss"]
    assert torch.equal(a, b)
    a.backward()
    b.backward()
    for one, other in zip(aware.model.parameters(), plain.model.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
    assert torch.equal(objective(below=0)(batch())["loss"], plain(batch())["loss"])
    nothing = objective(perceptual=0.0, face=0.0)
    assert torch.equal(nothing(batch())["loss"], plain(batch())["loss"])


def test_the_sum_is_as_written() -> None:
    """Rows at 5 and 50 have the terms, rows at 400 and 900 do not; each computed here on its own."""
    given = batch()
    aware = objective(perceptual=0.2, face=0.3, latent=0.1)
    model = aware.model
    with torch.no_grad():
        got = aware(given)
        z = model.first_stage.sample(model.first_stage.encode(to_pixels(given["images"])), given["posterior"])
        zt = model.schedule.add_noise(z, given["noise"], given["t"])
        none = model.null(4)
        output = model.predict(zt, given["t"], model.prepare(model.embed(none)))
        squared = (output - model.schedule.target(z, given["noise"], given["t"])).square()
        own = torch.from_numpy(MinSNRLoss().weights(model.schedule))[given["t"]] * squared.flatten(1).mean(dim=1)
        made = model.first_stage.decode(model.schedule.x0_from(output, zt, given["t"])).clamp(-1, 1)[:2]
        real = to_pixels(given["images"])[:2]
        here = (given["mask"][:2] > 0).float()
        inside = torch.where(here[:, None] > 0, made, real)
        perceptual = torch.zeros(2)
        for weight, a, b in zip((0.75, 0.25), Edges().maps(inside), Edges().maps(real), strict=True):
            a, b = (x / x.square().sum(dim=1, keepdim=True).sqrt() for x in (a, b))
            each = weight * (a - b).square().sum(dim=1, keepdim=True)
            large = nn.functional.interpolate(each, (SIZE, SIZE), mode="bilinear")[:, 0]
            perceptual += (large * here).sum(dim=(1, 2)) / here.sum(dim=(1, 2))
        box = torch.tensor([[[10, 8, 20, 24]]]).repeat(2, 1, 1) / SIZE
        face = torch.zeros(2)
        for weight, a, b in zip((0.75, 0.25), *(Edges().maps(crops(x, box, 16)[0]) for x in (made, real)), strict=True):
            face += weight * (a - b).abs().flatten(1).mean(dim=1)
        small = nn.functional.interpolate(here[:, None], size=squared.shape[-2:], mode="area")[:, 0]
        latent = (squared[:2].mean(dim=1) * small).sum(dim=(1, 2)) / small.sum(dim=(1, 2))
    wanted = own.clone()
    wanted[:2] = 0.4 * own[:2] + 0.2 * perceptual + 0.3 * face + 0.1 * latent
    torch.testing.assert_close(got["loss"], wanted.mean())
    torch.testing.assert_close(got["perceptual"], perceptual.sum() / 4)
    torch.testing.assert_close(got["face"], face.sum() / 4)
    torch.testing.assert_close(got["latent"], latent.sum() / 4)


@pytest.mark.parametrize("reading", ["map", "features"])
def test_nothing_outside_of_the_mask_has_a_gradient(reading: str) -> None:
    given = batch()
    real = to_pixels(given["images"])
    made = (real + 0.3 * torch.randn(real.shape, generator=torch.Generator().manual_seed(5))).requires_grad_()
    weights = class_weights(MaskAwareConfig(face=0.0))[given["mask"].long()].unsqueeze(1)
    distance, there = masked_distance(Edges(), made, real, weights, reading)  # type: ignore[arg-type]
    assert there.all()
    distance.sum().backward()
    assert made.grad is not None
    outside = (weights == 0).expand_as(made.grad)
    assert not made.grad[outside].any()
    assert made.grad[~outside].ne(0).float().mean() > 0.9
    same, _ = masked_distance(Edges(), real, real, weights, reading)  # type: ignore[arg-type]
    assert not same.any()


def test_the_two_readings_differ_and_both_fall_with_the_error() -> None:
    given = batch()
    real = to_pixels(given["images"])
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(5))
    weights = class_weights(MaskAwareConfig(face=0.0))[given["mask"].long()].unsqueeze(1)
    found = {
        reading: [masked_distance(Edges(), real + s * noise, real, weights, reading)[0] for s in (0.4, 0.1)]
        for reading in ("map", "features")
    }  # type: ignore[arg-type]
    for far, near in found.values():
        assert (far > near).all()
        assert (near > 0).all()
    assert not torch.allclose(found["map"][0], found["features"][0])


def test_classes_weigh_as_told() -> None:
    weights = class_weights(MaskAwareConfig(face=0.0, classes={"l_eye": 4.0, "cloth": 0.0, "background": 0.5}))
    assert weights[[CLASS_INDEX[c] for c in ("background", "skin", "l_eye", "cloth")]].tolist() == [0.5, 1.0, 4.0, 0.0]
    given = batch()
    real = to_pixels(given["images"])
    eye = (given["mask"] == CLASS_INDEX["l_eye"]).unsqueeze(1)
    wrong_eye = torch.where(eye, -real, real)
    found = []
    for classes in ({}, {"l_eye": 8.0}):
        config = MaskAwareConfig(face=0.0, classes=classes)  # type: ignore[arg-type]
        by_pixel = class_weights(config)[given["mask"].long()].unsqueeze(1)
        found.append(masked_distance(Edges(), wrong_eye, real, by_pixel, "map")[0])
    assert (found[1] > 1.5 * found[0]).all()


def test_rows_without_mask_or_face_contribute_nothing_and_keep_the_weights() -> None:
    given = batch()
    given["present_mask"][0] = False
    given["mask"][1] = CLASS_INDEX["hair"]  # a mask without a face
    aware = objective(perceptual=0.2, face=0.3)
    with torch.no_grad():
        together = aware(given)
        plain = DiffusionObjective(aware.model, MinSNRLoss(), ConditionDropout())
        rows = [{n: v[i : i + 1] for n, v in given.items()} for i in range(4)]
        own = [plain(row)["loss"] for row in rows]
        row0, row1 = aware(rows[0])["loss"], aware(rows[1])
    torch.testing.assert_close(row0, 0.5 * own[0])
    torch.testing.assert_close(row1["loss"], 0.5 * own[1] + 0.2 * row1["perceptual"])
    assert row1["face"] == 0
    torch.testing.assert_close(together["loss"], (row0 + row1["loss"] + own[2] + own[3]) / 4)


def test_boxes_come_before_the_masks_own() -> None:
    given = batch()
    labels, here = given["mask"].long(), given["present_mask"]
    own = _boxes(None, labels, here)
    assert (own * SIZE).tolist() == [[[10.0, 8.0, 20.0, 24.0]]] * 4
    drawn = torch.zeros(4, 2, 4)
    drawn[0, 0] = torch.tensor([0.1, 0.1, 0.5, 0.9])
    both = _boxes(drawn, labels, here)
    cut, row = crops(to_pixels(given["images"]), both, 8)
    assert row.tolist() == [0, 1, 2, 3], "a drawn box replaces the mask's, padding is no face"
    assert cut.shape == (4, 3, 8, 8)
    flat = torch.linspace(-1, 1, SIZE).view(1, 1, 1, SIZE).expand(1, 3, SIZE, SIZE).contiguous()
    part, _ = crops(flat, torch.tensor([[[0.25, 0.0, 0.75, 1.0]]]), 8)
    assert part[0, 0, 0, 0] == pytest.approx(-0.45, abs=0.05)
    assert part[0, 0, 0, -1] == pytest.approx(0.45, abs=0.05)


def test_keypoints_weigh_their_surroundings() -> None:
    points = torch.tensor([[[0.25, 0.75, 1.0], [0.5, 0.5, 0.0]]])
    bumps = _bumps(points, SIZE)[0, 0]
    y, x = divmod(int(bumps.argmax()), SIZE)
    assert (x, y) in itertools.product((7, 8), (23, 24))
    assert bumps[16, 16] < 0.01, "a point that does not count"
    given = {**batch(), "keypoints": points.repeat(4, 1, 1)}
    found = objective(perceptual=0.0, face=0.0, keypoints=0.5)(given)
    assert found["keypoints"] > 0
    assert objective(perceptual=0.0, face=0.0, keypoints=0.5)(batch())["keypoints"] == 0


def test_gradients_reach_the_branch_and_nothing_else(tmp_path: Path) -> None:
    checkpoint.save(ldm(), tmp_path / "base")
    model = checkpoint.build(ControlNetConfig(base=str(tmp_path / "base"), hint="mask"), stage(), seed=0)
    assert isinstance(model, ControlNetLDM)
    aware = objective(model).train()
    aware(batch())["loss"].backward()
    frozen = [*model.base.parameters(), *model.first_stage.parameters(), *aware.perceptual.parameters()]  # type: ignore[union-attr]
    assert all(p.grad is None for p in frozen)
    reached = {name for name, p in model.branch.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("controlnet_down_blocks" in name for name in reached)
    assert {n for n, p in aware.named_parameters() if p.requires_grad} == {
        f"{place}.branch.{n}" for place in ("module",) for n, _ in model.branch.named_parameters()
    }


def test_the_decoder_again_instead_of_kept() -> None:
    kept, again = objective(), objective(checkpoint_decoder=True)
    for aware in (kept, again):
        aware(batch())["loss"].backward()
    for one, other in zip(kept.model.parameters(), again.model.parameters(), strict=True):
        assert one.grad is None or torch.allclose(one.grad, other.grad, rtol=1e-5, atol=1e-8)  # type: ignore[arg-type]


def test_settings_that_do_not_fit_are_sentences() -> None:
    for fields, message in (
        ({"perceptual": 0.6, "face": 0.5, "embedder": {"kind": "small"}}, "add up to 1.1"),
        ({"face": 0.5}, "name an `embedder`"),
        ({"face": 0.0, "classes": {"l_eye": -1}}, "at least 0"),
        ({"face": 0.0, "classes": {"eye": 1}}, "did you mean"),
        ({"embedder": {"kind": "torchscript", "weights": "x.pt"}}, "trust: true"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(MaskAwareConfig, fields)


# --- networks ---


def test_our_classifier_as_both_networks() -> None:
    pixels = torch.rand(2, 3, 48, 48, requires_grad=True)
    for network in (load_perceptual(BundledNetworkConfig()), load_embedder(BundledNetworkConfig())):
        maps = network.maps(pixels)
        assert len(maps) == len(network.weights)
        assert network.sha256
    sum(m.sum() for m in maps).backward()  # type: ignore[union-attr]
    assert pixels.grad is not None


def test_vggface2_weights_open_without_running_anything(tmp_path: Path) -> None:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    tensors = resnet50(num_classes=8631).state_dict()
    torch.save(tensors, tmp_path / "resnet50_ft.pth")
    network = load_embedder(parse(EmbedderConfig, {"kind": "vggface2", "weights": str(tmp_path / "resnet50_ft.pth")}))
    maps = network.maps(torch.rand(1, 3, 254, 254) * 2 - 1)
    assert [m.shape[1:] for m in maps] == [(64, 127, 127), (256, 63, 63), (512, 32, 32), (1024, 16, 16), (2048, 8, 8)]
    assert network.weights == (0.1, 0.0025, 0.025, 0.05, 0.005)
    # As it was published: arrays of numpy in a pickle.
    arrays = {name: value.numpy() for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    (tmp_path / "resnet50_ft_weight.pkl").write_bytes(pickle.dumps(arrays, protocol=2))
    config = {"kind": "vggface2", "weights": str(tmp_path / "resnet50_ft_weight.pkl")}
    again = load_embedder(parse(EmbedderConfig, config)).network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in network.network.state_dict().items())
    del tensors["layer4.2.conv3.weight"]
    torch.save(tensors, tmp_path / "short.pth")
    with pytest.raises(InputError, match=r"layer4\.2\.conv3\.weight is missing"):
        load_embedder(parse(EmbedderConfig, {"kind": "vggface2", "weights": str(tmp_path / "short.pth")}))


def test_torchscript_only_with_trust_and_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "embedder.pt"
    torch.jit.script(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8))).save(str(path))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    network = load_embedder(TorchScriptConfig(weights=str(path), trust=True, sha256=sha256))
    assert network.maps(torch.rand(2, 3, 16, 16))[0].shape == (2, 8, 1, 1)
    for fields in ({}, {"trust": True}, {"sha256": sha256}, {"trust": True, "sha256": sha256[:16]}):
        with pytest.raises(ValueError, match="a TorchScript file is code"):
            TorchScriptConfig(weights=str(path), **fields)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not the trusted"):
        load_embedder(TorchScriptConfig(weights=str(path), trust=True, sha256="0" * 64))
