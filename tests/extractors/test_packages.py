"""Networks that installed packages offer: found by name, checked, used wherever a network is configured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from raygen.commands.doctor import networks
from raygen.commands.registry import make
from raygen.core.config import parse
from raygen.core.errors import ConfigError
from raygen.evaluation.config import ScoreConfig
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.evaluation.scoring import Scorer
from raygen.extractors.base import load_features, load_parser
from raygen.extractors.config import (
    FaceEmbedderConfig,
    ONNXLandmarkerConfig,
    PackageEmbedderConfig,
    PackageParserConfig,
    PackageScorerConfig,
)
from raygen.extractors.digests import by_content, network_digest
from raygen.extractors.face_embedder import load_face_embedder
from raygen.extractors.packages import find_extractor
from raygen.sampling.config import EditJudgeConfig
from raygen.selection.gates import ScoreGate, ScorePool
from raygen.store.images import encode_image, picture
from raygen.store.run_store import RunStore
from tests.drawn import quiet
from tests.exports.export_runs import sample, store_rows
from tests.extractors.packages import install, install_example

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def example(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    install_example(tmp_path_factory.mktemp("site"), monkeypatch)


def images(n: int = 3, side: int = 24) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (n, side, side, 3), dtype=np.uint8))


def test_a_parser_gives_official_classes_and_its_confidence() -> None:
    parser = load_parser(PackageParserConfig(name="example-parser"), CPU)
    half = torch.full((2, 32, 32, 3), 255, dtype=torch.uint8)
    half[0, :, 16:] = 0
    ids, confidence = parser.segment(half)
    assert (ids[0, :, :16] == 1).all()  # skin
    assert (ids[0, :, 16:] == 13).all()  # hair, in the order of CelebAMask-HQ
    assert torch.equal(parser.parse(half), ids)
    # The two logits are 4 and -4 in every pixel, and the others are far below.
    assert confidence.tolist() == pytest.approx([1 / (1 + np.exp(-8))] * 2, abs=1e-6)
    grey = torch.full((1, 32, 32, 3), 128, dtype=torch.uint8)
    assert parser.segment(grey)[1].item() == pytest.approx(0.5, abs=0.02)
    assert parser.parse(images()).shape == (3, 24, 24)
    protocol = parser.protocol()
    assert (protocol["package"], protocol["licence"]) == ("raygen-example 1.2", "CC0-1.0")
    assert protocol["input"] == "32 px bilinear antialias, rgb, 0..1"
    assert protocol["label_order"].startswith("face-parsing.PyTorch")


def test_an_embedder_gets_pixels_as_it_asks_for_them() -> None:
    """Order of the colours, range of the values, size; a picture without a face is NaN."""
    from raygen_example import WEIGHTS

    some = images(side=16)
    some[2] = 0
    config = FaceEmbedderConfig(network=PackageEmbedderConfig(name="example-embedder"))
    vectors = load_face_embedder(config, CPU).embed(some)
    pixels = some.numpy()[..., ::-1].transpose(0, 3, 1, 2) / 127.5 - 1
    wanted = pixels[:2].reshape(2, -1) @ WEIGHTS
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.allclose(vectors[:2], wanted, atol=1e-5)
    assert vectors[2].isnan().all()
    features = load_features(PackageEmbedderConfig(name="example-embedder"), CPU)
    assert features.metric == "fd:example-embedder"
    lengths = features.features(some).norm(dim=1, keepdim=True)
    assert np.allclose((features.features(some) / lengths)[:2], wanted, atol=1e-5)
    with pytest.raises(ConfigError, match=r"identity.size: example-embedder takes 16 px and nothing else"):
        load_face_embedder(config.model_copy(update={"size": 32}), CPU)


def test_rows_without_a_face_have_no_vector_and_numbers_become_metrics(tmp_path: Path) -> None:
    faces = [np.full((16, 16, 3), 40 * i, np.uint8) for i in range(4)]
    run = store_rows(
        tmp_path / "samples",
        [{**sample(i), "image": picture(encode_image(face))} for i, face in enumerate(faces)],
    )
    package = {"kind": "package", "name": "example-embedder"}
    score = {
        "parser": {"kind": "package", "name": "example-parser"},
        "features": package,
        "classifier": None,
        "identity": {"network": package},
        "scorers": [{"name": "example-scorer"}],
    }
    job = {"kind": "evaluate", "samples": run, "score": score, "out": f"{tmp_path}/scores"}
    facts = make(job).run(quiet).facts
    assert facts["score:example-scorer [all]"] == pytest.approx(np.mean([40, 80, 120]) / 255, abs=1e-4)
    assert "miou:example-parser [all]" in facts
    store = RunStore(f"{tmp_path}/scores/scores/samples")
    rows = [row for table in store.tables("scores") for row in table.to_pylist()]
    counts = {name: sum(row["metric"] == name for row in rows) for name in {row["metric"] for row in rows}}
    assert counts == {
        "features:example-embedder": 3,
        "identity:example-embedder": 3,
        "score:example-scorer": 3,
        "segmentation:example-parser": 4,
    }
    metrics = json.loads((tmp_path / "scores/metrics/metrics.json").read_text())
    protocol = next(row for row in metrics if row["metric"] == "score:example-scorer")["protocol"]
    assert protocol["sha256"] == find_extractor(PackageScorerConfig(name="example-scorer")).extractor.sha256


def test_the_sha256_is_part_of_the_identity_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(ScoreConfig, {"scorers": [{"name": "example-scorer"}], "classifier": None}, "score")
    digest = find_extractor(PackageScorerConfig(name="example-scorer")).extractor.sha256
    assert config.by_content()["scorers"] == [{"kind": "package", "name": "example-scorer", "sha256": digest}]
    assert "scorers" not in ScoreConfig().by_content()
    parser = PackageParserConfig(name="example-parser")
    assert by_content(parser, "parser")["sha256"] == network_digest(parser, "parser") != digest
    pinned = config.pinned(config.by_content())
    assert pinned.scorers[0].sha256 == digest, "so that a worker with another one refuses it"
    assert pinned.by_content() == config.by_content()
    assert EditJudgeConfig(parser=parser).digests()["parser"] == network_digest(parser, "parser")


def test_names_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for config, text in (
        (PackageParserConfig(name="example-parsr"), r"did you mean 'example-parser'"),
        (PackageParserConfig(name="zzz"), r"no installed package offers it in raygen.extractors \(offered: example-"),
        (PackageParserConfig(name="example-scorer"), "is of kind scorer, and parser is needed here"),
        (PackageParserConfig(name="example-parser", sha256="12345678"), r"sha256 is [0-9a-f]{64}, not 12345678"),
    ):
        with pytest.raises(ConfigError, match=text):
            find_extractor(config)
    digest = find_extractor(PackageParserConfig(name="example-parser")).extractor.sha256
    assert find_extractor(PackageParserConfig(name="example-parser", sha256=digest[:12].upper()))
    for few in ("", digest[:7], digest + "0", "sha256:" + digest[:8]):  # an empty one would fit any network
        with pytest.raises(ConfigError, match="sha256"):
            parse(PackageParserConfig, {"name": "example-parser", "sha256": few}, "parser")
        with pytest.raises(ConfigError, match="sha256"):
            parse(ONNXLandmarkerConfig, {"weights": "x.onnx", "sha256": few}, "landmarks")
    with pytest.raises(ConfigError, match="name"):
        parse(PackageParserConfig, {"name": "a:b"}, "parser")
    install(tmp_path, monkeypatch, "another", "3", {"example-parser": "raygen_example:Parser"})
    with pytest.raises(ConfigError, match=r"another 3 and raygen-example 1.2 both offer it; uninstall one"):
        find_extractor(PackageParserConfig(name="example-parser"))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import nothing_like_it", r"cannot be made \(ModuleNotFoundError: No module named 'nothing_like_it'\)"),
        ("raise SystemExit('no licence')", r"cannot be made \(SystemExit: no licence\)"),
        ("def Network(): raise OSError('no weights')", r"cannot be made \(OSError: no weights\)"),
        ("class Network: kind = 'parser'", "it has no sha256"),
        ("from raygen_example import Parser\ndef Network(): return Parser(sha256='AB')", "64 hexadecimal digits"),
        (
            "from raygen_example import Parser\ndef Network(): return Parser(kind='nose')",
            "kind must be one of embedder",
        ),
        ("from raygen_example import Parser\ndef Network(): return Parser(value_range=(1, 0))", "a lower and a higher"),
        ("from raygen_example import Parser\ndef Network(): return Parser(value_range=5)", "is not an extractor"),
        ("from raygen_example import Parser\ndef Network(): return Parser(licence='')", "licence must be a text"),
    ],
)
def test_packages_that_break_the_protocol(
    code: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"broken_{abs(hash(code))}"
    (tmp_path / f"{module}.py").write_text(code)
    install(tmp_path, monkeypatch, "broken", "0.1", {module: f"{module}:Network"})
    with pytest.raises(ConfigError, match=rf"{module}' of broken 0.1: .*{text}"):
        find_extractor(PackageParserConfig(name=module))


def test_outputs_of_another_shape_and_weights_that_do_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_shapes.py").write_text(
        "from raygen_example import Parser\n"
        "class Flat(Parser):\n"
        "    def load(self, device):\n"
        "        return lambda pixels: pixels.mean(axis=1)\n"
        "class Lost(Parser):\n"
        "    def load(self, device):\n"
        "        raise FileNotFoundError('weights.bin')\n"
    )
    install(tmp_path, monkeypatch, "odd", "1", {"flat": "odd_shapes:Flat", "lost": "odd_shapes:Lost"})
    parser = load_parser(PackageParserConfig(name="flat"), CPU)
    with pytest.raises(
        ConfigError, match=r"gave an array \[3, 32, 32\] of 3 pictures, and a parser gives \[3, 19, n, n\]"
    ):
        parser.parse(images())
    with pytest.raises(ConfigError, match=r"does not load on cpu \(FileNotFoundError: weights.bin\)"):
        load_parser(PackageParserConfig(name="lost"), CPU)


def test_a_job_with_an_unknown_network_writes_nothing(tmp_path: Path) -> None:
    run = store_rows(tmp_path / "samples", [sample(0)])
    score = {"identity": {"network": {"kind": "package", "name": "absent"}}}
    job = make({"kind": "evaluate", "samples": run, "score": score, "out": f"{tmp_path}/scores"})
    with pytest.raises(ConfigError, match="embedder 'absent': no installed package offers it"):
        job.run(quiet)
    assert not (tmp_path / "scores").exists()


def test_a_scorer_is_named_once() -> None:
    with pytest.raises(ConfigError, match="names a network twice"):
        parse(ScoreConfig, {"scorers": [{"name": "a"}, {"name": "a"}]}, "score")


def test_nan_of_a_network_that_is_not_of_a_package_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a defect, which is told when scores are gathered; see `raygen.evaluation.gather`."""
    import pyarrow as pa

    scorer = Scorer(ScoreConfig(parser=None, classifier=None), run_id="r")
    monkeypatch.setattr(scorer.features, "features", lambda pixels: torch.full((len(pixels), 2), torch.nan))
    assert scorer(images().numpy(), pa.table({"sample_id": ["a", "b", "c"]})).num_rows == 3


def test_a_gate_reads_the_number_of_a_scorer() -> None:
    """The network of that name, also where another one's name begins with it; the limit and the reason."""
    gate = parse(ScoreGate, {"metric": "scorer", "scorer": "sharp", "min": 0.5}, "gate")
    matrices = {
        f"score:{name}": ScoreMatrix(("a", "b"), np.array([[value], [1 - value]]))
        for name, value in (("sharpness", 0.9), ("sharp", 0.2))
    }
    pool = ScorePool(matrices)
    assert gate.needs == ("score:sharp",)
    assert gate.judge(pool, ScorePool(), gate.limits(pool)) == {"a": "sharp 0.200 < 0.500"}
    assert gate.describe({"min": 0.5}) == "Images with a score of sharp below 0.5 were refused."
    for settings in ({"metric": "scorer", "min": 1}, {"metric": "ssim", "scorer": "sharp", "min": 1}):
        with pytest.raises(ConfigError, match="`scorer` names the network"):
            parse(ScoreGate, settings, "gate")


def test_doctor_lists_what_packages_offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "gone", "1", {"gone": "module_that_is_not_there:Network"})
    found = {check.detail.partition(":")[0]: check for check in networks(".")}
    scorer = found["example-scorer"]
    digest = find_extractor(PackageScorerConfig(name="example-scorer")).extractor.sha256[:12]
    assert scorer.detail == f"example-scorer: scorer of raygen-example 1.2, sha256 {digest}, licence CC0-1.0"
    assert {check.status for check in found.values()} == {"ok", "note"}
    assert "module_that_is_not_there" in found["'gone' of gone 1"].detail
