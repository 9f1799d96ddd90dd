"""LPIPS from files as people have them: torchvision's VGG-16, made small enough to test with by being random."""

import hashlib
from pathlib import Path

import lpips
import pytest
import torch
import torchvision

from raygen.extractors import perceptual
from raygen.extractors.deep import load_perceptual
from raygen.extractors.perceptual import LPIPSSpec, load_lpips
from raygen.losses.mask_aware import masked_distance
from raygen.spec import ConfigError, InputError


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    torch.manual_seed(0)
    with torch.device("meta"):
        network = torchvision.models.vgg16()
    state = {
        name: 0.05 * torch.randn(tensor.shape) for name, tensor in network.state_dict().items() if "features" in name
    }
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_is_the_package_over_these_weights(vgg: tuple[Path, str]) -> None:
    path, sha256 = vgg
    made = load_lpips(LPIPSSpec(weights=str(path), sha256=sha256[:16]))
    oracle = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = torch.load(path, weights_only=True)
    oracle.net.load_state_dict({n: state["features." + n.partition(".")[2]] for n in oracle.net.state_dict()})
    one, other = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    made.train()  # stays without dropout
    with torch.no_grad():
        torch.testing.assert_close(made(one, other), oracle(one, other).flatten())
        assert torch.equal(made(one, one), torch.zeros(2))
    assert not any(p.requires_grad for p in made.parameters())
    one.requires_grad_()
    made(one, other).sum().backward()
    assert one.grad is not None
    assert made.sha256 == sha256


def test_the_masked_term_reads_the_packages_own_map(vgg: tuple[Path, str]) -> None:
    """A mask of ones gives the mean of the package's spatial map, the same network and channel weights."""
    path, sha256 = vgg
    network = load_perceptual(LPIPSSpec(weights=str(path), sha256=sha256[:16]))
    oracle = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False, spatial=True)
    state = torch.load(path, weights_only=True)
    oracle.net.load_state_dict({n: state["features." + n.partition(".")[2]] for n in oracle.net.state_dict()})
    made, real = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    weights = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        spatial = oracle(made, real)
        found, _ = masked_distance(network, made, real, weights, "map")
    wanted = (spatial * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("reading", ["map", "features"])
def test_masked_places_have_finite_gradients(vgg: tuple[Path, str], reading: str) -> None:
    network = load_perceptual(LPIPSSpec(weights=str(vgg[0]), sha256=vgg[1][:16]))
    made, real = (torch.rand(1, 3, 32, 32, requires_grad=i == 0) for i in range(2))
    weights = torch.zeros(1, 1, 32, 32)
    weights[..., 8:24, 8:24] = 1
    masked_distance(network, made, real, weights, reading)[0].sum().backward()  # type: ignore[arg-type]
    assert made.grad is not None
    assert made.grad.isfinite().all()
    assert made.grad[..., 8:24, 8:24].any()
    assert not made.grad[..., :8, :].any()


def test_without_weights_the_two_ways_on_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for spec in (LPIPSSpec(), LPIPSSpec(weights=str(tmp_path / "no.pth"))):
        with pytest.raises(ConfigError, match=r"perceptual\.weights=PATH.*perceptual=none"):
            load_lpips(spec)


def test_the_hub_name_reads_torchvisions_own_cache(
    vgg: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / perceptual.FILE).symlink_to(vgg[0])
    with pytest.raises(InputError, match="397923af"):
        load_lpips(LPIPSSpec())
    load_lpips(LPIPSSpec(sha256=vgg[1]))


def test_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(InputError, match="not VGG-16"):
        load_lpips(LPIPSSpec(weights=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
