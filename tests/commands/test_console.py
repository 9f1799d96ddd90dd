"""Progress of jobs with several stages: every line says which stage it is of."""

import pytest

from raygen.commands import console
from raygen.commands.base import report_stage
from raygen.execution.executor import Progress


def test_a_line_names_the_stage_and_the_stage_within_it(capsys: pytest.CaptureFixture[str]) -> None:
    lines = console._Lines("ablation")
    inner = report_stage(report_stage(lines, "gamma-1/scores"), "reference")
    progress = Progress(shards=1, rows=8, done_shards=1, done_rows=8)
    inner(progress)
    lines(progress)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("  ablation gamma-1/scores/reference: 8/8 rows")
    assert second.startswith("  ablation: 8/8 rows")
    assert progress.stage == "", "the job's own progress is not touched"
