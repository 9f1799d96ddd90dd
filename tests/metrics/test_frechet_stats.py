"""Foreign statistics, the factor that is kept, and the line over 1/n; the distance against other packages."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from raygen.metrics.frechet import FactoredReference, Moments, frechet, frechet_of_features, frechet_to
from raygen.metrics.frechet_stats import frechet_infinity, read_statistics

Array = npt.NDArray[np.float64]
D = 64


def features(n: int, seed: int, shift: float = 0.0, width: int = D) -> npt.NDArray[np.float32]:
    """Not negative, correlated, with a spectrum that falls off."""
    mix = np.random.default_rng(99).normal(size=(width, width)) * np.geomspace(1, 0.1, width)
    random = np.random.default_rng(seed)
    return np.maximum(random.normal(size=(n, width)) @ mix.T / 4 + 0.3 + shift, 0).astype(np.float32)


class _Features(torch.nn.Module):
    """In the place of a network: its pictures are features already."""

    num_features = D

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def of_torch_fidelity(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    a, b = (fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y))
    return float(fid_statistics_to_metric(a, b, verbose=False)["frechet_inception_distance"])


def of_torchmetrics(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    metric = FrechetInceptionDistance(feature=_Features()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(x).double(), real=True)
    metric.update(torch.from_numpy(y).double(), real=False)
    return float(metric.compute())


@pytest.mark.parametrize("theirs", [of_torch_fidelity, of_torchmetrics])
@pytest.mark.parametrize(("n", "m"), [(1500, 1200), (40, 50), (40, 1200)])
def test_equals_other_packages(n: int, m: int, theirs: Callable[..., float]) -> None:
    x, y = features(n, 1), features(m, 2, 0.05)
    expected = theirs(x, y)
    tolerance = 1e-6 if min(n, m) > D else 5e-6 * expected
    assert frechet_of_features(x, y).value == pytest.approx(expected, abs=tolerance)
    found = frechet_to(FactoredReference.of(Moments.of(y)), Moments.of(x)).value
    assert found == pytest.approx(expected, abs=tolerance)


def test_a_cached_factor_gives_the_same_bits() -> None:
    a, b, c = (Moments.of(features(300 + i, i, i / 50)) for i in range(3))
    reference = FactoredReference.of(a)
    np.testing.assert_allclose(reference.root @ reference.root.T, a.covariance, atol=1e-14)
    for other in (a, b, c):
        assert frechet_to(reference, other) == frechet(a, other)
    with pytest.raises(ValueError, match="not comparable"):
        frechet_to(reference, Moments.of(features(9, 3, width=5)))


@pytest.mark.parametrize("share", [0.1, 10.0])
def test_negative_spectrum_is_refused_from_its_bound_on(share: float) -> None:
    """The bound of `frechet` is a millionth of the trace, whichever way it is looked for."""
    spectrum = np.ones(D)
    spectrum[0] = -share * 1e-6 * (D - 1)
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(D, D)))[0]
    good = FactoredReference.of(Moments.of(features(300, 5)))
    bad = Moments(1001, np.zeros(D), turn @ np.diag(spectrum) @ turn.T * 1000)
    if share < 1:
        assert np.isfinite(frechet_to(good, bad).value)
        return
    with pytest.raises(ArithmeticError, match="damaged"):
        frechet_to(good, bad)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_statistics_of_other_packages(tmp_path: Path, save: Callable[..., None], dtype: Any) -> None:
    x, y = features(500, 9).astype(np.float64), features(400, 10, 0.1)
    save(tmp_path / "a.npz", mu=x.mean(0).astype(dtype), sigma=np.cov(x, rowvar=False).astype(dtype), extra=[1])
    found = read_statistics(tmp_path / "a.npz")
    assert found.n is None
    assert found.mean.dtype == found.covariance.dtype == np.float64
    value = frechet_to(found.reference(), Moments.of(y)).value
    assert value == pytest.approx(frechet_of_features(x, y).value, abs=1e-9 if dtype == np.float64 else 1e-3)
    assert found.reference().n is None


class _Trap:
    """Unpickling it is noticed."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (_Trap, "sprung", True))


def good() -> dict[str, Any]:
    x = features(200, 12, width=5)
    return {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)}


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def torch_file() -> bytes:
    """As torch-fidelity's cache has it."""
    buffer = io.BytesIO()
    torch.save(good() | {"trap": _Trap()}, buffer)
    return buffer.getvalue()


def claims(shape: tuple[int, ...]) -> bytes:
    """Small, but its header asks for `shape`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, size in (("mu", shape[:1]), ("sigma", shape)):
            member = io.BytesIO()
            np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": size})
            archive.writestr(f"{name}.npy", member.getvalue())
    return buffer.getvalue()


def zeros(name: str, size: int) -> bytes:
    """A small file that becomes a large one."""
    buffer = io.BytesIO(npz(**{key: value for key, value in good().items() if key != name}))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", bytes(size))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not an .npz"),
        (b"PK\x03\x04 no more", "not an .npz"),
        (pickle.dumps(_Trap()), "not an .npz"),
        (npz(**good())[:-30], "not an .npz"),
        (torch_file(), "pickle of torch"),
        (npz(mu=good()["mu"]), "has no sigma .it has mu."),
        (npz(m=1), "no mu and no sigma"),
        (npz(mu=good()["mu"], sigma=np.array([_Trap()], object)), "sigma is not an array"),
        (npz(**good() | {"mu": np.array(["a"] * 5)}), "mu is not an array"),
        (npz(**good() | {"mu": good()["mu"] * 1j}), "mu is not an array"),
        (npz(**good() | {"mu": np.ones(6)}), "sigma of shape"),
        (npz(**good() | {"mu": np.ones((5, 1))}), "mu of shape"),
        (npz(mu=np.ones(0), sigma=np.ones((0, 0))), "mu of shape"),
        (npz(**good() | {"sigma": np.ones(25)}), "sigma of shape"),
        (npz(**good() | {"mu": np.full(5, np.nan)}), "finite"),
        (npz(**good() | {"sigma": np.triu(good()["sigma"])}), "symmetric"),
        (npz(**good() | {"sigma": -good()["sigma"]}), "negative"),
        (claims((10**7, 10**7)), "is not an array"),
        (zeros("mu", 200_000), "larger"),
        (zeros("sigma", 1000), "is not an array"),
    ],
)
def test_what_is_not_statistics_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match=said) as error:
        read_statistics(tmp_path / "a.npz")
    assert "a.npz" in str(error.value)
    assert not _Trap.sprung


def test_damaged_bytes_are_values_or_a_value_error(tmp_path: Path) -> None:
    x = good()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **x)
    random = np.random.default_rng(13)
    refused = 0
    for _ in range(300):
        data = bytearray(buffer.getvalue())
        data[random.integers(len(data))] = random.integers(256)
        (tmp_path / "a.npz").write_bytes(bytes(data))
        try:
            read_statistics(tmp_path / "a.npz")
        except ValueError:
            refused += 1
    assert refused > 100


def test_no_file_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_statistics(tmp_path / "none.npz")


def gaussian(width: int) -> FactoredReference:
    return FactoredReference.of_covariance(np.zeros(width), np.eye(width))


def test_infinity_takes_the_bias_away() -> None:
    x = np.random.default_rng(14).normal(size=(4000, 16))
    x[:, 0] += 0.5
    found = frechet_infinity(x, gaussian(16), smallest=200)
    assert found.distances[0] > 0.25 + 0.2  # at 200 rows much of it is bias
    assert found.value == pytest.approx(0.25, abs=0.04)
    assert abs(found.value - 0.25) < abs(found.distances[-1] - 0.25) + 0.03
    assert (found.sizes[0], found.sizes[-1], len(found.sizes)) == (200, 4000, 15)
    whole = frechet_of_features(x, np.vstack([x])).value
    assert abs(whole) < 1e-9
    assert found.distances[-1] == pytest.approx(frechet(Moments.of(x), Moments(2, np.zeros(16), np.eye(16))).value)


def test_infinity_is_the_line_of_least_squares() -> None:
    found = frechet_infinity(features(900, 15, width=8), gaussian(8), points=6)
    line, covariance = np.polyfit(1 / found.sizes, found.distances, 1, cov=True)
    assert found.value == pytest.approx(line[1], rel=1e-9)
    assert found.standard_error == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-9)
    assert found.sizes[0] == 20


def test_infinity_is_fixed_by_its_seed() -> None:
    x = features(600, 16, width=8)
    one, two, other = (frechet_infinity(x, gaussian(8), seed=seed) for seed in (1, 1, 2))
    assert one.value == two.value
    assert (one.distances == two.distances).all()
    assert one.value != other.value
    assert one.distances[-1] == pytest.approx(other.distances[-1], rel=1e-12)  # all rows are all rows


@pytest.mark.parametrize(
    ("n", "kwargs", "said"),
    [
        (600, {"smallest": 19}, "need 20"),
        (33, {}, "15 sizes"),
        (600, {"points": 2}, "3 different"),
        (600, {"smallest": 595}, "15 sizes"),
    ],
)
def test_infinity_needs_rows(n: int, kwargs: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        frechet_infinity(features(n, 17, width=8), gaussian(8), **kwargs)
    with pytest.raises(ValueError, match="not comparable"):
        frechet_infinity(features(600, 17, width=9), gaussian(8))
