"""LPIPS from files as people have them: torchvision's trunks, random ones, since theirs may not be passed on."""

import copy
import hashlib
from pathlib import Path

import lpips
import pytest
import torch
import torchvision

from raygen.core.errors import ConfigError, InputError
from raygen.extractors import lpips as our_lpips
from raygen.extractors.config import LPIPSConfig
from raygen.extractors.lpips import load_lpips
from raygen.extractors.perceptual import load_perceptual
from raygen.training.losses.mask_aware import masked_distance


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
    made = load_lpips(LPIPSConfig(weights=str(path), sha256=sha256[:16]))
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
    network = load_perceptual(LPIPSConfig(weights=str(path), sha256=sha256[:16]))
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
    network = load_perceptual(LPIPSConfig(weights=str(vgg[0]), sha256=vgg[1][:16]))
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
    for config in (LPIPSConfig(), LPIPSConfig(weights=str(tmp_path / "no.pth"))):
        with pytest.raises(ConfigError, match=r"perceptual\.weights=PATH.*perceptual=none"):
            load_lpips(config)


def test_the_hub_name_reads_torchvisions_own_cache(
    vgg: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / our_lpips.FILES["vgg"]).symlink_to(vgg[0])
    with pytest.raises(InputError, match="397923af"):
        load_lpips(LPIPSConfig())
    load_lpips(LPIPSConfig(sha256=vgg[1]))


def test_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(InputError, match="not VGG-16"):
        load_lpips(LPIPSConfig(weights=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest()))


# --- AlexNet ------------------------------------------------------------------------------------------------


def random_trunk(network: str, folder: Path) -> LPIPSConfig:
    """A file as torchvision's, its weights random and alive, and the config that names it."""
    with torch.device("meta"):
        model = getattr(torchvision.models, {"vgg": "vgg16", "alex": "alexnet"}[network])()
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("features"):
            scale = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.1
            state[name] = scale * torch.randn(tensor.shape, generator=generator)
    path = folder / f"{network}.pth"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return LPIPSConfig.model_validate({"network": network, "weights": str(path), "sha256": digest})


@pytest.fixture(scope="module", params=["alex", "vgg"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LPIPSConfig:
    return random_trunk(request.param, tmp_path_factory.mktemp(request.param))


def package(config: LPIPSConfig) -> lpips.LPIPS:
    """The package as it is, over the file of a spec."""
    oracle = lpips.LPIPS(net=config.network, pnet_rand=True, verbose=False)
    state = torch.load(config.weights, weights_only=True)
    oracle.net.load_state_dict({n: state["features." + n.partition(".")[2]] for n in oracle.net.state_dict()})
    return oracle


@pytest.fixture(scope="module")
def both(config: LPIPSConfig) -> tuple[our_lpips.LPIPS, lpips.LPIPS]:
    """Ours and the package's."""
    return load_lpips(config), package(config)


def pictures(n: int, side: int = 40) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(4)) * 2 - 1


def test_both_networks_equal_the_package(config: LPIPSConfig, both: tuple[our_lpips.LPIPS, lpips.LPIPS]) -> None:
    made, oracle = both
    one, other = pictures(6).chunk(2)
    with torch.no_grad():
        truth = oracle(one, other).flatten()
        torch.testing.assert_close(made(one, other), truth)
    assert truth.min() > 1e-3
    assert made.sha256 == config.sha256


def test_a_file_of_the_other_network_is_refused(config: LPIPSConfig, tmp_path: Path) -> None:
    other = "alex" if config.network == "vgg" else "vgg"
    with pytest.raises(InputError, match="is not VGG-16" if other == "vgg" else "is not AlexNet"):
        load_lpips(config.model_copy(update={"network": other}))


def test_alexnet_is_looked_for_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConfigError, match=r"alexnet-owt-7be5be79\.pth: LPIPS needs AlexNet's"):
        load_lpips(LPIPSConfig(network="alex"))
    (tmp_path / "checkpoints").mkdir()
    random_trunk("alex", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "alex.pth").rename(tmp_path / "checkpoints" / our_lpips.FILES["alex"])
    with pytest.raises(InputError, match="not 7be5be79"):
        load_lpips(LPIPSConfig(network="alex"))


# --- all pairs ----------------------------------------------------------------------------------------------


def pair_loop(oracle: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    found = torch.zeros(len(images), len(images), dtype=torch.float64)
    with torch.no_grad():
        for i in range(len(images)):
            for j in range(i):
                found[i, j] = found[j, i] = oracle(images[i : i + 1], images[j : j + 1]).double().flatten()[0]
    return found


@pytest.mark.parametrize("negative", [False, True])
def test_all_pairs_are_what_each_pair_is(both: tuple[our_lpips.LPIPS, lpips.LPIPS], negative: bool) -> None:
    made, oracle = copy.deepcopy(both)
    if negative:  # the calibrated weights are not, but nothing says that they cannot be
        for network in (made.network, oracle):
            for lin in network.lins:
                lin.model[-1].weight.data[:, ::2] *= -3
    images = torch.cat([pictures(5), pictures(1)])  # the first one twice
    images[4] = images[3] + 1e-3
    truth = pair_loop(oracle, images)
    found = made.pairs(images)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-6)
    assert (truth < -1e-3).any() == negative
    assert torch.equal(found.diagonal(), torch.zeros(6, dtype=torch.float64))
    assert torch.equal(found, found.T)
    assert abs(float(found[0, 5])) < 1e-12
    assert 0 < abs(float(found[3, 4])) < 1e-3
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(made.pairs(images[order]), found[order][:, order], rtol=0, atol=1e-7)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_memory_that_does_not_hold_all_gives_the_same(
    both: tuple[our_lpips.LPIPS, lpips.LPIPS], n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for few pictures, so tiles meet in pairs; blocks and chunks that do not divide anything."""
    made, images = copy.deepcopy(both[0]), pictures(n)
    whole = made.pairs(images)
    widest = {"vgg": 64, "alex": 4}[made.network.pnet_type]
    monkeypatch.setattr(our_lpips, "HELD", 4 * 4 * 40 * 40 * widest)
    monkeypatch.setattr(our_lpips, "CHUNK", 3)
    monkeypatch.setattr(our_lpips, "BLOCK", {"cpu": 1001})
    passed = []
    made.network.net.register_forward_pre_hook(lambda *_: pytest.fail("the whole trunk holds every layer"))
    made.network.net.slice1.register_forward_pre_hook(lambda _, given: passed.append(len(given[0])))
    torch.testing.assert_close(made.pairs(images), whole, rtol=0, atol=1e-7)
    assert max(passed) <= 3
    assert sum(passed) == {1: 1, 2: 2, 7: 3 * 7}[n], "four tiles, the last of one, each with three others"
