"""SCA-DM: masks gate, styles stay in their class, conditions are computed once, counts are the published ones."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raygen.core.errors import ConfigError
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.attention import CrossAttention, gates
from raygen.models.autoencoder import FirstStage
from raygen.models.conditions import Conditions, Shapes
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.conditions import ConditionDropout
from raygen.models.config.scadm import SCADMConfig, StyleConfig
from raygen.models.scadm import SCADM, build_scadm_unet, new_style_encoder
from raygen.models.spade import modulated
from raygen.models.style_encoder import StyleEncoder
from raygen.store.images import encode_image, encode_mask, picture
from raygen.store.schemas import CONDITIONS
from raygen.training.config.losses import AttentionLoss, SimpleLoss
from raygen.training.losses import DiffusionObjective
from raygen.training.losses.diffusion import attention_loss, own_style

STAGE = AutoencoderConfig(image_size=32, channels=(8, 8))
SMALL = {
    "channels": (16, 32),
    "layers_per_block": 1,
    "attention": (False, True),
    "head_dim": 8,
    "spade_hidden": 8,
    "style": StyleConfig(base=1, downs=3, ups=2, width=8),
}


def make(**fields: object) -> SCADM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stage = FirstStage(STAGE)
    model = checkpoint.build(SCADMConfig(**{**SMALL, **fields}), stage, seed=0)  # type: ignore[arg-type]
    assert isinstance(model, SCADM)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if not parameter.any() and "first_stage" not in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def conditions(n: int = 2, classes: int = 19) -> Conditions:
    generator = torch.Generator().manual_seed(2)
    mask = torch.randint(0, classes, (n, 32, 32), dtype=torch.uint8, generator=generator)
    images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    style, weights = own_style(images, mask)
    present = {name: torch.ones(n, dtype=torch.bool) for name in ("mask", "style")}
    return Conditions(n=n, mask=mask, style=style, style_weights=weights, present=present)


def says(model: SCADM, given: Conditions) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    zt = torch.randn(given.n, *model.latent_shape, generator=generator)
    t = torch.tensor([10, 900, 500, 200][: given.n])
    with torch.no_grad():
        return model.predict(zt, t, model.prepare(model.embed(given)))


def test_paper_size_counts() -> None:
    """Section 2.1 of the reference: 486,912,387 (with an unused label embedding of 19 x 896) and 18,069,304."""
    with torch.device("meta"):
        unet = build_scadm_unet(SCADMConfig(), (3, 64, 64))
        encoder = new_style_encoder(SCADMConfig())
    assert encoder is not None
    assert sum(p.numel() for p in unet.parameters()) + 19 * 896 == 486_912_387
    assert sum(p.numel() for p in encoder.parameters()) == 18_069_304
    assert encoder.width == 1280
    assert checkpoint.count(SCADMConfig(), (3, 64, 64)) == {"unet": 486_895_363, "style_encoder": 18_069_304}


# --- gated attention ---


class _Layer:
    """What a cross-attention layer of diffusers offers to its processor."""

    heads = 2

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.to_q, self.to_k, self.to_v = (torch.nn.Linear(8, 8, bias=False) for _ in range(3))
        self.to_out = [torch.nn.Linear(8, 8), torch.nn.Identity()]


def _maps(labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels.long(), 19).movedim(-1, 1).float()


def _attend(x: torch.Tensor, tokens: torch.Tensor, maps: torch.Tensor, gating: str = "hard") -> torch.Tensor:
    layer, processor = _Layer(), CrossAttention()
    processor.multiplied = gating == "paper"
    processor.gates = {16: gates({4: maps}, gating)["gate.16"]}  # type: ignore[arg-type]
    with torch.no_grad():
        return processor(layer, x, tokens)


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    return torch.randn(3, 16, 8), torch.randn(3, 19, 8), torch.randint(0, 18, (3, 4, 4))


def test_hard_gates_look_up_the_value_of_the_class(scene: tuple[torch.Tensor, ...]) -> None:
    x, tokens, labels = scene
    layer = _Layer()
    with torch.no_grad():
        values = layer.to_v(tokens)
        expected = layer.to_out[0](values[torch.arange(3)[:, None], labels.flatten(1)])
    torch.testing.assert_close(_attend(x, tokens, _maps(labels)), expected)


def test_another_style_moves_the_pixels_of_its_class_only(scene: tuple[torch.Tensor, ...]) -> None:
    x, tokens, labels = scene
    before = _attend(x, tokens, _maps(labels))
    other = tokens.clone()
    other[:, 5] += 1
    other[:, 18] += 1  # in no mask
    moved = (_attend(x, other, _maps(labels)) != before).any(dim=2)
    assert torch.equal(moved, labels.flatten(1) == 5)
    assert moved.any()


def test_the_papers_gates_leak(scene: tuple[torch.Tensor, ...]) -> None:
    x, tokens, labels = scene
    other = tokens.clone()
    other[:, 5] += 1
    a, b = (_attend(x, t, _maps(labels), "paper") for t in (tokens, other))
    assert ((a != b).any(dim=2)).all(), "a score of 0 still has a weight in a softmax"


def test_batch_order_does_not_matter(scene: tuple[torch.Tensor, ...]) -> None:
    x, tokens, labels = scene
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        _attend(x, tokens, _maps(labels))[order], _attend(x[order], tokens[order], _maps(labels[order]))
    )


def test_without_a_mask_all_tokens_count_alike(scene: tuple[torch.Tensor, ...]) -> None:
    x, tokens, labels = scene
    layer = _Layer()
    with torch.no_grad():
        mean = layer.to_out[0](layer.to_v(tokens).mean(dim=1, keepdim=True)).expand(3, 16, 8)
    torch.testing.assert_close(_attend(x, tokens, torch.zeros_like(_maps(labels))), mean)


# --- styles ---


def test_the_style_of_a_class_depends_on_its_own_group_alone() -> None:
    """With aligned groups a class's style reads that class's features; as released it mixes them."""
    for aligned in (True, False):
        torch.manual_seed(0)
        encoder = StyleEncoder(1, 3, 2, 8, aligned=aligned)
        pixels, maps = torch.randn(1, 3, 32, 32), _maps(torch.randint(0, 19, (1, 32, 32)))
        with torch.no_grad():
            before = encoder(pixels, maps)
            width = encoder.first[0].weight.shape[0] // 19
            encoder.first[0].weight[7 * width : 8 * width] += 1  # what the group of class 7 sees
            moved = (encoder(pixels, maps) != before).any(dim=2)[0]
        assert bool(moved[7])
        assert (moved.sum() == 1) == aligned


def test_a_class_that_is_not_there_says_nothing_of_the_picture() -> None:
    torch.manual_seed(0)
    encoder, maps = StyleEncoder(1, 3, 2, 8), _maps(torch.randint(0, 10, (1, 32, 32)))
    with torch.no_grad():
        one, two = (encoder(torch.randn(1, 3, 32, 32), maps) for _ in range(2))
    assert torch.equal(one[:, 10:], two[:, 10:])
    assert (one[:, :10] != two[:, :10]).any(dim=2).all()


def test_one_formula_for_all_experiments() -> None:
    model, given = make(), conditions()
    assert given.style is not None
    assert given.style_weights is not None
    given.style[:, 1] = given.style[:, 0].flip(0)  # the second reference is the other picture
    given.style_weights[:, 1] = given.style_weights[:, 0].flip(0)

    def styles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        weights = torch.stack([a.expand(2, 19), b.expand(2, 19)], dim=1)
        return model.styles(
            Conditions(n=2, mask=given.mask, style=given.style, style_weights=weights, present=given.present)
        )

    ones, zeros = torch.ones(19), torch.zeros(19)
    own, swapped, null = styles(ones, zeros), styles(zeros, ones), styles(zeros, zeros)
    torch.testing.assert_close(styles(ones * 0.25, ones * 0.75), 0.25 * own + 0.75 * swapped)
    part = torch.zeros(19)
    part[13] = 1
    hair = styles(1 - part, part)
    torch.testing.assert_close(hair[:, 13], swapped[:, 13])
    torch.testing.assert_close(hair[:, :13], own[:, :13])
    mixed = styles(1 - part, zeros)
    torch.testing.assert_close(mixed[:, 13], null[:, 13])
    hidden = model.styles(
        Conditions(
            n=2,
            mask=given.mask,
            style=given.style,
            style_weights=given.style_weights,
            present={**given.present, "style": torch.zeros(2, dtype=torch.bool)},
        )
    )
    assert torch.equal(hidden, null), "a reference that dropout hides is no reference"


# --- the model ---


@pytest.mark.parametrize("fields", [{}, {"gating": "paper"}, {"gating": "none"}, {"style": None}])
def test_scales_keys_and_gates_once_change_no_bit(fields: dict[str, object]) -> None:
    """Against the same things made anew at every step, in float32."""
    model, given = make(**fields), conditions()
    zt, t = torch.randn(2, *model.latent_shape), torch.tensor([10, 900])
    with torch.no_grad():
        ctx = model.prepare(model.embed(given))
        steps = [model.predict(zt, t, ctx) for _ in range(3)]
        anew = [model.predict(zt, t, model.prepare(model.embed(given))) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(steps, anew, strict=True))
    assert not any(m.ready is not None for m in model.modules() if hasattr(m, "ready"))


def test_an_absent_mask_and_an_absent_style_say_nothing() -> None:
    model, one = make(), conditions()
    other = conditions()
    assert other.mask is not None
    other.mask.copy_(other.mask.flip(0))
    assert not torch.allclose(says(model, one), says(model, other))
    nothing = [c.keep(()) for c in (one, other)]
    assert torch.equal(says(model, nothing[0]), says(model, nothing[1]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_trains_end_to_end(checkpointing: bool) -> None:
    model, given = make().train(), conditions(4)
    for parameter in model.trainable():
        parameter.requires_grad_(True)
    if checkpointing:
        model.unet.enable_gradient_checkpointing()
    objective = DiffusionObjective(model, SimpleLoss(), ConditionDropout(null=0.0, only={"mask": 0.5}))
    assert given.style is not None
    assert given.mask is not None
    torch.manual_seed(0)
    batch = {
        "moments": torch.randn(4, 2 * model.latent_shape[0], *model.latent_shape[1:]),
        "posterior": torch.randn(4, *model.latent_shape),
        "noise": torch.randn(4, *model.latent_shape),
        "t": torch.tensor([1, 200, 600, 999]),
        "dropout": torch.tensor([0.1, 0.9, 0.3, 0.7]),
        "mask": given.mask,
        "images": given.style[:, 0, :3].movedim(1, -1),
        "present_mask": torch.ones(4, dtype=torch.bool),
    }
    objective(batch)["loss"].backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # With hard gates a pixel sees one token, so its query and every key count for nothing.
    assert all("attn2.to_q" in name or "attn2.to_k" in name for name in idle), idle


def test_a_checkpoint_holds_everything(tmp_path: Path) -> None:
    for fields in ({}, {"style": None}, {"gating": "paper"}):
        model = make(**fields)
        checkpoint.save(model, tmp_path / "model")
        back = checkpoint.load(tmp_path / "model")
        assert torch.equal(says(back, conditions()), says(model, conditions()))  # type: ignore[arg-type]
        assert checkpoint_folder.modalities(tmp_path / "model") == model.modalities
    with pytest.raises(ConfigError, match="cannot be halved so often"):
        make(style=StyleConfig(base=1, downs=6, ups=2, width=8))


def test_gates_only_inside_their_forward() -> None:
    model = make()
    with pytest.raises(AssertionError, match="outside"):
        model.unet(torch.randn(1, *model.latent_shape), 3, torch.randn(1, 19, 16))
    with torch.no_grad():
        ctx = model.prepare(model.embed(conditions()))
        with modulated(model.unet, ctx):
            pass


# --- rows ---


def face(seed: int, size: int = 32, mask_size: int = 32, classes: int = 10) -> dict[str, object]:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
    labels = random.integers(0, classes, (mask_size, mask_size), dtype=np.uint8)
    return {"image": picture(encode_image(pixels)), "mask": picture(encode_mask(labels))}


FACES = {"a": face(1), "b": face(2), "small": face(3, mask_size=16), "bare": {**face(4), "mask": None}}


def parsed(**row: object) -> tuple[Conditions, list[str | None]]:
    document = {"sample_id": "s", "plan": "styles", "seed": 0, "mask": FACES["a"]["mask"], **row}
    table = pa.Table.from_pylist([document], CONDITIONS)
    shapes = Shapes(32, references=lambda ids: {i: FACES[i] for i in ids})
    return Conditions.from_rows(table, ("mask", "style"), shapes=shapes)


def test_rows_become_weights() -> None:
    a, b = ({"face_id": name, "sha256": None} for name in "ab")
    there = torch.arange(19) < 10

    def weights(**row: object) -> torch.Tensor:
        found, errors = parsed(**row)
        assert errors == [None]
        assert found.style_weights is not None
        return found.style_weights[0]

    own = weights(style_reference_a=a)
    assert torch.equal(own, torch.stack([there.float(), torch.zeros(19)])), "what it does not have is not taken"
    swap = weights(style_reference_a=a, style_reference_b=b)
    assert torch.equal(swap, torch.stack([torch.zeros(19), there.float()]))
    part = weights(style_reference_a=a, style_reference_b=b, style_parts=[3, 4], style_mix=0.25)
    assert part[:, 3].tolist() == part[:, 4].tolist() == [0.75, 0.25]
    assert part[:, 5].tolist() == [1.0, 0.0]
    noise = weights(style_reference_a=a, style_parts=[3])
    assert noise[:, 3].tolist() == [0.0, 0.0]
    found, _ = parsed()
    assert not found.present["style"].any()


def test_bad_references_are_errors_with_reasons() -> None:
    def error(**row: object) -> str:
        found, errors = parsed(**row)
        assert not found.present["style"].any()
        assert not found.present["mask"].any()
        return str(errors[0])

    assert error(style_reference_a={"face_id": "bare"}) == "style: reference 'bare' has no mask"
    assert error(style_reference_a={"face_id": "small"}).startswith(
        "style: the mask of reference 'small' is 16x16, its picture 32"
    )
    assert error(style_reference_a={"face_id": "a", "sha256": "0" * 64}).startswith(
        "style: reference 'a' is another picture"
    )
    assert error(style_reference_a={"face_id": "a"}, style_parts=[19]) == "style: part 19 is above 18"
    both = {"style_reference_a": {"face_id": "a"}, "style_reference_b": {"face_id": "b"}}
    assert error(**both, style_parts=[14, 16]) == "style: neither the mask nor a reference has hat, neck_l"


# --- the attention loss ---


def test_the_attention_loss_wants_scores_that_name_the_class() -> None:
    mask = torch.randint(0, 19, (2, 8, 8), dtype=torch.uint8)
    here = torch.ones(2, dtype=torch.bool)
    named = _maps(mask)[:, :, ::2, ::2].flatten(2).transpose(1, 2)  # [2, 16, 19]: every second pixel, as nearest has it
    for loss, good in ((AttentionLoss(), 40 * named - 20), (AttentionLoss(kind="mse"), named)):
        assert float(attention_loss(loss, good, mask, here)) < 1e-6
        assert float(attention_loss(loss, -good, mask, here)) > 0.05
        assert float(attention_loss(loss, -good, mask, ~here)) == 0, "without a mask there is nothing to name"


def test_the_attention_loss_reaches_queries_and_keys() -> None:
    """Hard gates alone leave them without a gradient (see `test_it_trains_end_to_end`)."""
    model, given = make().train(), conditions(4)
    for parameter in model.trainable():
        parameter.requires_grad_(True)
    objective = DiffusionObjective(model, SimpleLoss(), ConditionDropout(null=0.0), AttentionLoss())
    assert given.style is not None
    assert given.mask is not None
    batch = {
        "moments": torch.randn(4, 2 * model.latent_shape[0], *model.latent_shape[1:]),
        "posterior": torch.randn(4, *model.latent_shape),
        "noise": torch.randn(4, *model.latent_shape),
        "t": torch.tensor([1, 200, 600, 999]),
        "dropout": torch.ones(4),
        "mask": given.mask,
        "images": given.style[:, 0, :3].movedim(1, -1),
        "present_mask": torch.ones(4, dtype=torch.bool),
    }
    losses = objective(batch)
    losses["loss"].backward()
    assert set(losses) == {"loss", "mse", "attention"}
    torch.testing.assert_close(losses["loss"].detach(), losses["mse"] + 0.01 * losses["attention"])
    found = {n: p.grad for n, p in model.named_parameters() if "attn2.to_q" in n or "attn2.to_k" in n}
    assert found
    assert all(g is not None and g.any() for g in found.values())
