"""A branch beside a frozen base: the base to the bit before training, and the only thing that trains."""

from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from raygen.core.errors import ConfigError
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.autoencoder import FirstStage
from raygen.models.conditions import Conditions
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.controlnet import ControlNetConfig
from raygen.models.config.ldm import LDMConfig
from raygen.models.controlnet import ControlNetLDM
from raygen.models.ldm import LDM
from raygen.training.config.losses import SimpleLoss
from raygen.training.losses import DiffusionObjective

STAGE = AutoencoderConfig(image_size=32, channels=(8, 8, 8))
SMALL = {"channels": (16, 32), "attention": (False, True), "head_dim": 8, "token_width": 16}
BASES = {
    "attributes": {"modalities": ("attributes",), "attribute_path": "both"},
    "mask tokens": {"modalities": ("mask",), "mask_path": "tokens", "mask_side": 8},
    "nothing": {"constant_token": True},
    "mask beside the latent": {"modalities": ("mask", "attributes"), "attribute_path": "tokens"},
}


def base_of(**fields: object) -> LDM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stage = FirstStage(STAGE)
    model = checkpoint.build(LDMConfig(**{**SMALL, **fields}), stage, seed=0)  # type: ignore[arg-type]
    assert isinstance(model, LDM)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.unet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(params=list(BASES))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    checkpoint.save(base_of(**BASES[request.param]), tmp_path / "base")
    return tmp_path / "base"


def build(folder: Path, hint: str = "mask") -> ControlNetLDM:
    config = ControlNetConfig(base=str(folder), hint=hint)  # type: ignore[arg-type]
    model = checkpoint.build(config, checkpoint.load_first_stage(folder), seed=5)
    assert isinstance(model, ControlNetLDM)
    return model.eval()


def conditions(model: ControlNetLDM, n: int = 2, seed: int = 2) -> Conditions:
    generator = torch.Generator().manual_seed(seed)
    values = {
        "mask": torch.randint(0, 19, (n, 32, 32), dtype=torch.uint8, generator=generator),
        "attributes": torch.randint(0, 2, (n, 40), generator=generator).float() * 2 - 1,
        "hint": torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator),
    }
    here = {name: torch.ones(n, dtype=torch.bool) for name in model.modalities}
    return Conditions(n=n, present=here, **{name: values[name] for name in model.modalities})  # type: ignore[arg-type]


def says(model: ControlNetLDM | LDM, given: Conditions) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    zt = torch.randn(given.n, *model.latent_shape, generator=generator)
    return model.predict(zt, torch.tensor([10, 900][: given.n]), model.prepare(model.embed(given)))


def awake(model: ControlNetLDM) -> ControlNetLDM:
    """As if it had trained."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        for parameter in model.branch.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("hint", ["none", "mask", "picture"])
def test_at_first_it_is_the_base_to_the_bit(folder: Path, hint: str) -> None:
    model = build(folder, hint)
    given = conditions(model)
    for grad in (torch.enable_grad, torch.no_grad):
        with grad():
            before = says(model.base, given.keep(model.base.modalities))
            assert torch.equal(says(model, given), before)
            assert before.any()
    with torch.no_grad():
        assert not torch.equal(says(awake(model), given), before)


def test_the_hint_says_where(folder: Path) -> None:
    model = awake(build(folder))
    one, other = conditions(model), conditions(model, seed=9)
    mixed = Conditions(n=2, mask=other.mask, attributes=one.attributes, present=one.present)
    with torch.no_grad():
        assert not torch.equal(says(model, one), says(model, mixed))
        hidden = Conditions(
            n=2,
            mask=torch.zeros_like(one.mask),
            attributes=one.attributes,  # type: ignore[arg-type]
            present={**one.present, "mask": torch.zeros(2, dtype=torch.bool)},
        )
        assert not model.embed(hidden)["hint"].any(), "an absent mask is one of zeros"


def test_a_picture_as_hint(folder: Path) -> None:
    """Zeros where a row has none; the branch looks at it, and at nothing else of the row's that the base does not."""
    model = awake(build(folder, "picture"))
    given = conditions(model)
    hint = model.embed(given)["hint"]
    assert hint.shape == (2, 3, 32, 32)
    assert given.hint is not None
    torch.testing.assert_close(hint[1, :, 3, 4], given.hint[1, 3, 4] / 255.0)
    assert not model.embed(given.keep(model.base.modalities))["hint"].any()
    with torch.no_grad():
        assert not torch.equal(says(model, given), says(model, given.keep(model.base.modalities)))
    assert ControlNetConfig(base="x", hint="mask") != ControlNetConfig(base="x", hint="picture")


def test_only_the_branch_trains(folder: Path) -> None:
    model = build(folder)
    objective = DiffusionObjective(model, SimpleLoss()).train()
    assert not model.base.training
    named = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert named
    assert all(".branch." in name for name in named)
    kept = {name: p.clone() for name, p in model.base.state_dict().items()}
    given = conditions(model)
    batch = {
        "images": torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8),
        "noise": torch.randn(2, *model.latent_shape),
        "posterior": torch.randn(2, *model.latent_shape),
        "t": torch.tensor([5, 700]),
        "dropout": torch.ones(2),
        **given.values(),
        **{f"present_{name}": flag for name, flag in given.present.items()},
    }
    optimizer = torch.optim.SGD(objective.phases()[0], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        objective(batch)["loss"].backward()
        optimizer.step()
    assert all(torch.equal(p, kept[name]) for name, p in model.base.state_dict().items())
    assert all(p.grad is None for p in model.base.parameters())
    moved = [name for name, p in model.branch.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("down_blocks" in name for name in moved)
    assert any("controlnet_cond_embedding" in name for name in moved)


@pytest.mark.parametrize("hint", ["none", "mask", "picture"])
def test_a_folder_gives_it_back(folder: Path, tmp_path: Path, hint: str) -> None:
    model = awake(build(folder, hint))
    checkpoint.save(model, tmp_path / "saved")
    again = checkpoint.load(tmp_path / "saved")
    assert isinstance(again, ControlNetLDM)
    assert checkpoint_folder.modalities(tmp_path / "saved") == model.modalities
    given = conditions(model)
    with torch.no_grad():
        model.requires_grad_(False)
        assert torch.equal(says(again, given), says(model, given))
    UNet2DConditionModel.from_pretrained(tmp_path / "saved/unet")
    if hint != "none":
        ControlNetModel.from_pretrained(tmp_path / "saved/controlnet")


def test_keys_and_values_once_a_picture(folder: Path) -> None:
    model = awake(build(folder)).requires_grad_(False)
    given = conditions(model)
    with torch.enable_grad():
        again = model.prepare(model.embed(given))
    with torch.no_grad():
        once = model.prepare(model.embed(given))
        zt, t = torch.randn(2, *model.latent_shape), torch.tensor([3, 400])
        assert torch.equal(model.predict(zt, t, once), model.predict(zt, t, again))
    assert {"branch/kv.0", "base/kv.0"} <= set(once)


def test_a_base_without_tokens_is_refused(tmp_path: Path) -> None:
    checkpoint.save(base_of(modalities=("mask",)), tmp_path / "base")
    with pytest.raises(ConfigError, match=r"cross-attention.*constant_token=true"):
        build(tmp_path / "base")


def test_counts_without_making_it(folder: Path) -> None:
    config = ControlNetConfig(base=str(folder), hint="mask")
    model = build(folder)
    assert checkpoint.count(config) == {"branch": sum(p.numel() for p in model.branch.parameters())}


def test_the_hints_encoder_must_end_at_the_latents(tmp_path: Path) -> None:
    checkpoint.save(base_of(constant_token=True), tmp_path / "base")
    config = ControlNetConfig(base=str(tmp_path / "base"), hint="mask", hint_channels=(8, 8))
    with pytest.raises(ConfigError, match="a first stage of 8 pixels a position needs 4"):
        checkpoint.build(config, checkpoint.load_first_stage(tmp_path / "base"), seed=0)
