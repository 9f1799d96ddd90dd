"""Section: command, settings, versions and digests that make the same run again."""

import json
from typing import Final

from raygen.report.run_folder import RunFolder
from raygen.report.section import Section

__all__ = ["section"]


MAX_FILES: Final = 60


def section(run: RunFolder) -> Section | None:
    """What is needed to make the run again and to check it; None for a folder without stores."""
    stages = run.stages.values()
    main = run.images or next(iter(stages), None)
    if main is None:
        return None
    # A local path may name its user, so only the folder's own name is shown.
    place = run.name if run.url.startswith(("/", "file:")) else run.url
    facts = [
        ("run_id", main.plan.run_id),
        ("seed", main.plan.settings.get("seed")),
        ("checkpoint (sha256)", run.first_sample.get("checkpoint")),
        ("set digest", main.digest),
        ("batch", main.plan.batch),
        ("shards", len(main.plan.shards)),
    ]
    environment = main.commits[0].environment if main.commits else main.record.get("versions") or {}
    files = [(stage.folder, entry) for stage in stages for commit in stage.commits for entry in commit.files]
    variables = {
        "command": run.command or f"raygen {main.plan.kind} JOB.yaml",
        "verify": f"raygen verify {place}/{main.folder}",
        "facts": [(name, value) for name, value in facts if value is not None],
        "versions": {key: str(value) for key, value in environment.items() if key != "worker"},  # it names a host
        "settings": [
            (stage.title, json.dumps(stage.plan.settings, indent=2, ensure_ascii=False, default=str))
            for stage in stages
        ],
        "files": files[:MAX_FILES],
        "more": max(len(files) - MAX_FILES, 0),
    }
    return Section("reproduce", "How to reproduce it", "reproduce.html.j2", variables)
