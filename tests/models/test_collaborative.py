"""Experts stay what they are, shares add up to 1, and what cannot work together is refused by name."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from raygen.core.errors import ConfigError, InputError
from raygen.models import batched_unets, checkpoint, checkpoint_folder
from raygen.models.autoencoder import FirstStage
from raygen.models.collaborative import Collaborative, DynamicDiffuser
from raygen.models.conditions import Conditions
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.collaborative import CollaborativeConfig, diffuser_config
from raygen.models.config.conditions import ConditionDropout
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.mixing import ConstantMixing, DifferenceMixing, Mixing, PaperMixing, ReleasedMixing
from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.text import TransformerTextConfig
from raygen.models.expert_mixing import mixed_shares
from raygen.models.ldm import LDM, run_unet
from raygen.models.text import Tokenizer, learn_vocabulary
from raygen.sampling.guidance import build_guidance
from raygen.training.config.losses import SimpleLoss
from raygen.training.losses import DiffusionObjective

STAGE = AutoencoderConfig(image_size=16, channels=(8, 8))
SMALL = {"channels": (32, 32), "attention": (False, True), "token_width": 16, "mask_channels": 4, "head_dim": 8}
WORDS = ["a man with a hat", "a woman who smiles"]
TEXT = TransformerTextConfig(length=8, layers=1, heads=2, head_dim=8, inner=16)
READERS: Mapping[str, dict[str, object]] = {
    "mask": {"modalities": ("mask",)},
    "tokens": {"modalities": ("mask",), "mask_path": "tokens", "mask_side": 8},
    "text": {"modalities": ("text",), "text": TEXT},
    "attributes": {"modalities": ("attributes",)},
    "vector": {"modalities": ("attributes",), "attribute_path": "vector"},
}


def first_stage(seed: int = 0) -> FirstStage:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FirstStage(STAGE)


def expert(name: str, stage: FirstStage | None = None, words: list[str] = WORDS, **fields: object) -> LDM:
    tokenizer = Tokenizer.wordpiece(learn_vocabulary(words), 8) if name == "text" else None
    config = LDMConfig(**{**SMALL, **READERS[name], **fields})  # type: ignore[arg-type]
    model = checkpoint.build(config, stage or first_stage(), seed=sum(map(ord, name)), tokenizer=tokenizer)
    assert isinstance(model, LDM)
    return _as_if_trained(model)


def _as_if_trained(model: torch.nn.Module) -> "torch.nn.Module":
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if not parameter.any() and "first_stage" not in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def together(*names: str, nulls: tuple[str, ...] = (), **fields: object) -> Collaborative:
    config = CollaborativeConfig(experts={n: n for n in names}, channels=(16, 16), head_dim=8, **fields)  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Collaborative(config, {n: expert(n) for n in names}, nulls=nulls)
    _as_if_trained(model.diffusers)
    return model.eval()


def conditions(n: int) -> Conditions:
    generator = torch.Generator().manual_seed(5)
    tokenizer = Tokenizer.wordpiece(learn_vocabulary(WORDS), 8)
    names = ("mask", "attributes", "text")
    return Conditions(
        n=n,
        mask=torch.randint(0, 19, (n, 16, 16), generator=generator, dtype=torch.uint8),
        attributes=torch.randint(0, 2, (n, 40), generator=generator).float() * 2 - 1,
        text=tokenizer([WORDS[i % 2] for i in range(n)]),
        present={name: torch.ones(n, dtype=torch.bool) for name in names},
    )


def at(model: Collaborative | LDM, n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(n, *model.latent_shape, generator=generator), torch.tensor([10, 900] * n)[:n]


def says(model: Collaborative | LDM, record: dict[str, torch.Tensor] | None = None, n: int = 2) -> torch.Tensor:
    with torch.no_grad():
        return model.predict(*at(model, n), model.prepare(model.embed(conditions(n))), record)


@pytest.mark.parametrize(
    "mixing", [PaperMixing(), ConstantMixing(), DifferenceMixing()], ids=["paper", "constant", "difference"]
)
def test_networks_of_equal_shapes_run_as_one(mixing: Mixing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask tokens and texts have the same UNets and unequally many tokens; the mask as channels has another UNet."""
    model = together("tokens", "text", "mask", nulls=("tokens", "text", "mask")).requires_grad_(False)
    model.mix(mixing)
    calls = []
    monkeypatch.setattr(batched_unets, "run_unet", lambda *given: calls.append(given) or run_unet(*given))
    one_by_one, alone = says(model), len(calls)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    model.side_by_side.grouped = True
    with torch.inference_mode():
        torch.testing.assert_close(says(model), one_by_one, rtol=1e-4, atol=1e-5)
    assert not any(p.is_inference() for p in model.parameters()), "they can be tuned later"
    assert len(calls) - alone == alone * 2 // 3, "the two equal ones are one call"
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model.expert("text").unet.conv_in.weight.mul_(1.5)
        changed = says(model)
        model.side_by_side.grouped = False
        torch.testing.assert_close(changed, says(model), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(changed, one_by_one, rtol=1e-3, atol=1e-3)
        model.double().float()  # the weights have moved, and are stacked anew
        model.expert("text").unet.conv_in.weight.mul_(1.5)
        again = says(model)
        model.side_by_side.grouped = True
        torch.testing.assert_close(says(model), again, rtol=1e-4, atol=1e-5)


def test_paper_size_counts() -> None:
    """Section 1.1 of the reference: 13,136,321 as released; 13,404,641 with AdaLN."""
    paper = LDMConfig(
        latent=(3, 64, 64),
        channels=(192, 384, 576, 960),
        layers_per_block=2,
        attention=(False, True, True, True),
        heads=32,
        token_width=640,
        modalities=("mask",),
        mask_path="tokens",
        mask_class_embedding=False,
    )
    for time, parameters in (("additive", 13_136_321), ("scale_shift", 13_404_641)):
        config = CollaborativeConfig(experts={"mask": "m"}, time=time)  # type: ignore[arg-type]
        with torch.device("meta"):
            diffuser = DynamicDiffuser(diffuser_config(config, paper), (3, 64, 64), paper.vector_width)
        assert sum(p.numel() for p in diffuser.parameters()) == parameters


@pytest.mark.parametrize("names", [("mask", "text"), ("tokens", "text", "attributes"), ("vector", "mask"), ("text",)])
def test_influences_add_up_to_one(names: tuple[str, ...]) -> None:
    record: dict[str, torch.Tensor] = {}
    model = together(*names)
    output = says(model, record)
    shares = torch.stack([record[f"influence/{name}"] for name in names])
    assert output.shape == (2, *model.latent_shape)
    assert shares.shape == (len(names), 2, 1, *model.latent_shape[1:])
    torch.testing.assert_close(shares.sum(dim=0), torch.ones_like(shares[0]))
    if len(names) > 1:
        assert shares.std() > 1e-4, "these diffusers say something"


def test_guidance_by_modality_leaves_no_record() -> None:
    """None of its terms has all conditions, so the influence it would tell is of something else."""
    model = together("mask", "text", nulls=("mask", "text"))
    zt, t = at(model)
    with torch.no_grad():
        for guidance, recorded in ((2.0, True), ({"mask": 1.5, "text": 3.0}, False)):
            record: dict[str, torch.Tensor] = {}
            build_guidance(model, conditions(2), guidance)(model, zt, t, record)  # type: ignore[arg-type]
            assert bool(record) == recorded
            if recorded:
                alone: dict[str, torch.Tensor] = {}
                says(model, alone)
                torch.testing.assert_close(record["influence/mask"][:2], alone["influence/mask"])


def test_constant_weights_do_not_depend_on_their_order() -> None:
    weights = {"mask": 1.0, "text": 2.0, "attributes": 4.0}
    found = []
    for names in itertools.permutations(weights):
        model = together("mask", "text", "attributes")
        model.mix(ConstantMixing(weights={name: weights[name] for name in names}))
        found.append(says(model))
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize("mixing", [PaperMixing(), ConstantMixing(), ReleasedMixing(fading=("mask",))])
def test_the_prediction_is_the_sum_of_influence_times_expert(
    mixing: PaperMixing | ConstantMixing | ReleasedMixing,
) -> None:
    model = together("mask", "text")
    model.mix(mixing)
    record: dict[str, torch.Tensor] = {}
    output = says(model, record)
    parts = [record[f"influence/{name}"] * says(model.expert(name)) for name in ("mask", "text")]
    torch.testing.assert_close(output, parts[0] + parts[1])


@pytest.mark.parametrize("name", ["mask", "text", "attributes"])
def test_one_expert_alone_is_that_expert(name: str) -> None:
    # In the mode in which a checkpoint is loaded: dropout in training mode, even at p = 0, changes the memory layout of
    # an activation, and with it the convolution kernel that oneDNN takes and the rounding.
    alone = says(expert(name).eval().requires_grad_(False))
    assert torch.equal(says(together(name)), alone)
    model = together("mask", "text", "attributes")
    model.mix(ConstantMixing(weights={name: 1}))
    assert torch.equal(says(model), alone)


def test_equal_constant_influence_is_the_mean() -> None:
    model = together("mask", "text", "attributes")
    model.mix(ConstantMixing())
    mean = torch.stack([says(expert(name)) for name in ("mask", "text", "attributes")]).mean(dim=0)
    torch.testing.assert_close(says(model), mean)


def test_difference_is_that_of_the_formula() -> None:
    model = together("mask", "text", nulls=("mask", "text"))
    model.mix(DifferenceMixing(weights={"text": 2.0}))
    expected = torch.zeros(())
    for name, weight in (("mask", 1.0), ("text", 2.0)):
        one = expert(name)
        with torch.no_grad():
            e = one.predict(*at(one), one.prepare(one.embed(conditions(2))))
            e0 = one.predict(*at(one), one.prepare(one.embed(conditions(2).keep(()))))
        expected = expected + e0 / 2 + weight * (e - e0)
    torch.testing.assert_close(says(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("t", "share"), [(981, 0.6663), (781, 0.6141), (501, 0.4010), (281, 0.1672), (101, 0.0247), (1, 0.0)]
)
def test_the_released_re_weighting(t: int, share: float) -> None:
    """Vectors of section 1.1 of the reference: raw influence one half each."""
    half = torch.full((1, 1, 2, 2), 0.5)
    found = mixed_shares(ReleasedMixing(), {"mask": half, "text": half}, torch.tensor([t]), 1000)
    torch.testing.assert_close(found["mask"], torch.full_like(half, share), atol=6e-5, rtol=0)
    torch.testing.assert_close(found["mask"] + found["text"], torch.ones_like(half))


def test_the_released_re_weighting_with_three() -> None:
    """With a sketch both fade, and the text takes the rest."""
    raw = {name: torch.full((1, 1, 1, 1), share) for name, share in (("mask", 0.5), ("sketch", 0.2), ("text", 0.3))}
    found = mixed_shares(ReleasedMixing(fading=("mask", "sketch")), raw, torch.tensor([501]), 1000)
    s = (math.cos(math.pi * (1 - 0.501)) + 1) / 2
    expected = {"mask": 2 * 0.5 * s, "sketch": 0.2 * s, "text": 1 - 0.7 * s}  # only the mask is boosted
    total = sum(expected.values())
    assert {k: float(v) for k, v in found.items()} == pytest.approx({k: v / total for k, v in expected.items()})


def test_training_moves_the_diffusers_and_no_expert() -> None:
    model = together("mask", "text", "vector").train()
    frozen = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("diffusers.")}
    own = {k: v.clone() for k, v in model.diffusers.state_dict().items()}
    objective = DiffusionObjective(model, SimpleLoss(), ConditionDropout(null=0.0))
    (parameters,) = objective.phases()
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in model.trainable())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    given, n = conditions(4), 4
    batch = {
        "moments": torch.randn(n, 2 * model.latent_shape[0], *model.latent_shape[1:]),
        "posterior": torch.randn(n, *model.latent_shape),
        "noise": torch.randn(n, *model.latent_shape),
        "t": torch.tensor([1, 200, 600, 999]),
        "dropout": torch.ones(n),
        **given.values(),
        **{f"present_{name}": flag for name, flag in given.present.items()},
    }
    for _ in range(3):
        optimizer.zero_grad()
        objective(batch)["loss"].backward()
        optimizer.step()
    assert all(torch.equal(frozen[k], v) for k, v in model.state_dict().items() if k in frozen)
    assert all(p.grad is None for k, p in model.named_parameters() if not k.startswith("diffusers."))
    moved = [k for k, v in model.diffusers.state_dict().items() if not torch.equal(own[k], v)]
    assert len(moved) > 0.9 * len(own)


def test_keys_and_values_once_a_picture_change_no_bit() -> None:
    for name in ("text", "tokens", "attributes"):
        one = expert(name)
        with torch.no_grad():
            ready = one.prepare(one.embed(conditions(2)))
            bare = {k: v for k, v in ready.items() if not k.startswith("kv.")}
            assert len(ready) > len(bare)
            assert torch.equal(one.predict(*at(one), ready), one.predict(*at(one), bare))
        assert not [k for k in one.prepare(one.embed(conditions(2))) if k.startswith("kv.")], (
            "with gradients: each step"
        )


def test_the_mixing_is_checked() -> None:
    model = together("mask", "text", nulls=("mask",))
    with pytest.raises(ConfigError, match=r"no expert \['sketch'\]; there are \['mask', 'text'\]"):
        model.mix(ConstantMixing(weights={"sketch": 1}))
    with pytest.raises(ConfigError, match="not trained without theirs: text"):
        model.mix(DifferenceMixing())
    with pytest.raises(ConfigError, match="are no shares"):
        model.mix(ConstantMixing(weights={"mask": -1, "text": 2}))
    with pytest.raises(ConfigError, match=r"guidance subtracts .* without theirs: text"):
        build_guidance(model, conditions(2), 2.0)
    assert len(build_guidance(model, conditions(2), 1.0).weights) == 1
    with pytest.raises(ConfigError, match="all experts fade"):
        model.mix(ReleasedMixing(fading=("mask", "text")))
    with pytest.raises(ConfigError, match="one denoiser"):
        expert("mask").mix(ConstantMixing())


def test_experts_that_do_not_fit_are_refused_by_name() -> None:
    def refused(match: str, other: LDM) -> None:
        config = CollaborativeConfig(experts={"mask": "a", "text": "b"}, channels=(16, 16), head_dim=8)
        with pytest.raises(ConfigError, match=match):
            Collaborative(config, {"mask": expert("mask"), "text": other})

    refused("'mask' and 'text': different first stages", expert("text", first_stage(seed=4)))
    refused(
        r"'mask' and 'text': different noise schedules \(prediction_type epsilon and v_prediction\)",
        expert("text", noise=NoiseSchedule(prediction_type="v_prediction")),
    )
    wide = FirstStage(AutoencoderConfig(image_size=32, channels=(8, 8)))
    refused(r"'mask' and 'text': latents", expert("text", wide))
    config = CollaborativeConfig(experts={"one": "a", "two": "b"}, channels=(16, 16), head_dim=8)
    with pytest.raises(ConfigError, match="'one' and 'two': different vocabularies"):
        Collaborative(config, {"one": expert("text"), "two": expert("text", words=["other words"])})
    scaled = first_stage()
    scaled.scale.fill_(0.058)
    refused(r"'mask' and 'text': different first stages", expert("text", scaled))
    with pytest.raises(ConfigError, match=r"nulls: no expert \['maks'\]"):
        Collaborative(config, {"one": expert("text"), "two": expert("text")}, nulls=("maks",))
    with pytest.raises(ConfigError, match="3 levels for an expert of 2"):
        Collaborative(CollaborativeConfig(experts={"mask": "a"}, channels=(8, 8, 8)), {"mask": expert("mask")})


@pytest.mark.parametrize("names", [("mask", "text"), ("vector", "tokens", "text")])
def test_a_checkpoint_holds_everything(tmp_path: Path, names: tuple[str, ...]) -> None:
    model = together(*names, nulls=names[:1]).requires_grad_(False)
    for name in names:
        checkpoint.save(model.expert(name), tmp_path / name, extra={"recipe": {"dropout": {"null": 0.1}}})
    checkpoint.save(model, tmp_path / "all")
    back = checkpoint.load(tmp_path / "all")
    assert isinstance(back, Collaborative)
    assert torch.equal(says(back), says(model))
    assert back.nulls == names[:1]
    assert checkpoint_folder.modalities(tmp_path / "all") == model.modalities
    config = CollaborativeConfig(experts={n: str(tmp_path / n) for n in names}, channels=(16, 16), head_dim=8)
    fresh = checkpoint.build(config, first_stage(), seed=0)
    assert isinstance(fresh, Collaborative)
    assert set(fresh.nulls) == set(names), "their recipes say that conditions were dropped"
    assert torch.equal(says(fresh.expert(names[0])), says(model.expert(names[0])))
    with pytest.raises(ConfigError, match=f"expert '{min(names)}' has another first stage"):
        checkpoint.build(config, first_stage(seed=4), seed=0)
    (tmp_path / "all" / "diffusers" / names[-1] / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="diffusion_pytorch_model"):
        checkpoint.load(tmp_path / "all")


def test_a_first_stage_is_no_expert(tmp_path: Path) -> None:
    checkpoint.save(together("mask", "text"), tmp_path / "all")
    config = CollaborativeConfig(experts={"mask": str(tmp_path / "all")}, channels=(16, 16), head_dim=8)
    with pytest.raises(ConfigError, match="an expert or a base is an ldm, this is a collaborative"):
        checkpoint.build(config, first_stage(), seed=0)
