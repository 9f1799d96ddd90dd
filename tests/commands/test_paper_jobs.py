"""The papers' sizes: every preset counts what was published, without being made; a dry run says so."""

import re

import pytest
from typer.testing import CliRunner

from raygen.cli import app
from raygen.commands.registry import load

#: (job, part) -> published parameters.
PUBLISHED = {
    ("kl_f4_256", "autoencoder"): 55_312_063,
    ("kl_f4_128", "autoencoder"): 55_312_063,
    ("kl_f8_512", "autoencoder"): 83_639_999,
    ("vq_f4_256", "autoencoder"): 55_322_782,
    ("celebahq_256", "unet"): 274_056_163,
    ("ffhq_128", "unet"): 201_371_331,
    ("text_256", "unet"): 403_623_939,
    ("text_256", "text_encoder"): 186_154_682 - 30_522 * 641,  # without the unused layer over the vocabulary
    ("mask_256", "unet"): 403_623_939,
    ("mask_256", "mask_encoder"): 1024 * 640 + 640,
    ("attributes_256", "unet"): 403_623_939,
    ("scadm_256", "unet"): 486_912_387 - 19 * 896,  # without a label embedding that nothing reads
    ("scadm_256", "style_encoder"): 18_069_304,
    ("attributes_mask_256", "unet"): 403_623_939,
}


@pytest.mark.parametrize(("job", "part"), PUBLISHED, ids=lambda value: value)
def test_published_sizes(job: str, part: str) -> None:
    notes = load(f"jobs/papers/{job}.yaml").estimate().notes
    counts = {n.split(":")[0]: int(re.sub(r"\D", "", n.split(":")[1])) for n in notes if n.endswith("parameters")}
    assert counts[part] == PUBLISHED[job, part]
    assert any("time is not estimated" in note for note in notes)


def test_a_dry_run_prints_them() -> None:
    shown = CliRunner().invoke(app, ["train", "jobs/papers/celebahq_256.yaml", "--dry-run"])
    assert shown.exit_code == 0
    assert "unet: 274,056,163 parameters" in shown.output
    assert "nothing was written" in shown.output
