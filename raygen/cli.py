"""The command line: parse, call, print. No logic.

Exit codes: 0 ok, 2 configuration or input, 3 too many bad rows, 4 infrastructure, 5 integrity, 130 interrupted.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from raygen.commands import console
from raygen.commands.base import Job
from raygen.commands.registry import COMMANDS, Command, load
from raygen.core.errors import ConfigError, RaygenError
from raygen.store.run_store import RunStore

__all__ = ["app", "main"]


app = typer.Typer(
    name="raygen",
    help="Very large, labelled, reproducible face data sets from diffusion models, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
INTERRUPTED = KeyboardInterrupt("what is committed stays; the same command goes on where this one stopped")
JobFile = Annotated[Path, typer.Argument(help="job file (YAML)", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="overrides: seed=3 resources.runner=ray", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="resolve, count and estimate; write nothing")]


def _register(name: str, command: Command) -> None:
    def run_job(job: JobFile, overrides: Overrides = None, dry_run: DryRun = False) -> None:
        loaded = load(str(job), overrides or (), name)
        if dry_run:
            _estimate(loaded)
        else:
            _run(name, loaded)

    app.command(name, help=command.summary)(run_job)


for _name, _command in COMMANDS.items():
    _register(_name, _command)


def _run(name: str, job: Job) -> None:
    with console.progress(name) as progress:
        result = job.run(progress)
    console.heading(f"{name}: {result.out}")
    console.facts(result.facts)


def _estimate(job: Job) -> None:
    console.console.print(yaml.safe_dump(job.document(), sort_keys=False).rstrip(), markup=False)
    estimate = job.estimate()
    console.heading("dry run: nothing was written")
    shards = {"shards": f"{estimate.shards} ({estimate.done_shards} are committed already)"} if estimate.shards else {}
    workers = "one worker" if job.resources.workers == 1 else f"{job.resources.workers} workers"
    console.facts(
        {
            "rows": estimate.rows,
            **shards,
            "bytes": f"about {console.size(estimate.bytes)}",
            "time": f"about {console.duration(estimate.seconds)} with {workers}"
            if estimate.seconds
            else "not estimated",
        }
    )
    for note in estimate.notes:
        console.console.print(f"  {note}", markup=False)


KindName = Annotated[str, typer.Argument(help=f"one of {', '.join(COMMANDS)}", metavar="KIND", show_default=False)]


@app.command()
def schema(kind: KindName) -> None:
    """Print the JSON schema of the job files of a command."""
    from raygen.commands.schema import schema_text

    sys.stdout.write(schema_text(kind))


@app.command()
def init(kind: KindName) -> None:
    """Print a commented job file with every default: raygen init generate > job.yaml."""
    from raygen.commands.schema import job_template

    sys.stdout.write(job_template(kind))


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="folder for everything it makes")] = Path("runs/quickstart"),
    train: Annotated[bool, typer.Option("--train", help="train the models from nothing first (10 minutes)")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Ray actors")] = 2,
    pictures: Annotated[int, typer.Option(min=64, help="pictures to generate")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="of the faces and the noise")] = 7,
) -> None:
    """Draw faces, plan, generate on a local Ray, evaluate, report. No GPU, data, weights or network."""
    from raygen.commands.quickstart import Quickstart, run_quickstart

    run_quickstart(Quickstart(out=str(out), train=train, workers=workers, pictures=pictures, seed=seed))


@app.command()
def verify(
    folder: Annotated[str, typer.Argument(help="folder of a run, such as runs/quickstart/samples")],
    attempt: Annotated[int, typer.Option(min=0)] = 0,
    decode: Annotated[bool, typer.Option(help="also decode every picture")] = True,
) -> None:
    """Prove that every planned row is there exactly once and every byte is as committed."""
    from raygen.commands.verify import verify as check

    found = check(RunStore(folder, attempt), decode=decode)
    console.heading(f"verify: {found.url}")
    console.facts(
        {
            "run_id": found.run_id,
            "shards": f"{found.committed} of {found.shards} committed",
            "rows": dict(found.rows),
            "pictures": f"{found.pictures:,} {'decoded' if decode else 'not decoded'}",
            **({} if found.files is None else {"data set": f"{found.files:,} files as they were exported"}),
            "bytes": console.size(found.bytes),
            "quarantined": found.quarantined,
            "set_digest": found.set_digest,
            "orphans": len(found.orphans),
        }
    )
    for problem in found.problems[:50]:
        console.console.print(f"  problem: {problem}", markup=False)
    console.console.print("  [green]all well[/green]" if found.ok else f"  [red]{len(found.problems)} problems[/red]")
    raise typer.Exit(0 if found.ok else 5)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="run folder, such as runs/quickstart")],
    out: Annotated[Path | None, typer.Option(help="file to write; default FOLDER/report.html")] = None,
    faces: Annotated[str | None, typer.Option(help="ingest run that rows refer to, where it lies elsewhere")] = None,
) -> None:
    """Write the report of a run folder: one HTML file that needs no network."""
    from raygen.report.build import build_report

    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    console.heading(f"report: {build_report(str(folder), None if out is None else str(out), faces=faces)}")


@app.command("import")
def import_(
    words: Annotated[
        list[str], typer.Argument(help="FAMILY (or auto), FILE…, OUT; with --inspect FILE… alone", show_default=False)
    ],
    look: Annotated[bool, typer.Option("--inspect", help="say what the files are; write nothing")] = False,
    image_size: Annotated[int | None, typer.Option(help="side of its pictures; default: as published")] = None,
    weights: Annotated[str | None, typer.Option(help="ema or raw; default: as published")] = None,
    scaling_factor: Annotated[float | None, typer.Option(help="of its latents; default: as published")] = None,
    vocabulary: Annotated[str | None, typer.Option(help="of its text encoder: vocab.txt, folder or name")] = None,
) -> None:
    """Published checkpoints -> our folders: every tensor is used, left behind for a reason, or an error."""
    from raygen.convert.convert import convert, inspect
    from raygen.convert.families import FAMILIES
    from raygen.convert.parts import Options

    family = words[0] if words[0] in FAMILIES else None
    files = words[1:] if family or words[0] == "auto" else words
    options = Options(image_size, weights, scaling_factor, vocabulary)
    if look:
        account = inspect(files, family, options)
    elif len(files) < 2:
        raise ConfigError(f"import takes a family, files and a folder; families: {', '.join(FAMILIES)}, or auto")
    else:
        account = convert(family, files[:-1], files[-1], options)
    console.heading(f"import: {files[0] if look else files[-1]}")
    console.facts(account.facts())
    for problem in account.problems:
        console.console.print(f"  problem: {problem}", markup=False)
    raise typer.Exit(2 if account.problems else 0)


@app.command()
def doctor(
    folder: Annotated[str, typer.Option(help="where results would go; a URL or a folder")] = "runs",
) -> None:
    """Check versions, accelerator, Ray, storage and the working folder."""
    from raygen.commands.doctor import examine

    checks = examine(folder)
    for check in checks:
        mark = {"ok": "[green]ok  [/green]", "note": "[yellow]note[/yellow]", "bad": "[red]bad [/red]"}[check.status]
        console.console.print(f"  {mark} [bold]{check.name}[/bold]: ", end="")
        console.console.print(check.detail, markup=False)
    raise typer.Exit(4 if any(check.status == "bad" for check in checks) else 0)


def main() -> None:
    """Entry point: errors that raygen raises on purpose become one sentence and their exit code."""
    try:
        code = app(standalone_mode=False)  # of `typer.Exit`, which is not raised this far
    except RaygenError as error:
        console.failure(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.failure(INTERRUPTED)
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error that the parser found
            error.show()
            sys.exit(error.exit_code)
        raise
    if code == 130:  # the parser turns an interrupt into a quiet exit
        console.failure(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)
