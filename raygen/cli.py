"""The command line: parse the words, call a command, print its result, exit with its code."""

import errno
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
import yaml

from raygen.commands import console
from raygen.commands.base import Job
from raygen.commands.registry import COMMANDS, Command, load
from raygen.core.config import parse
from raygen.core.errors import ConfigError, InfrastructureError, RaygenError, StorageError
from raygen.core.location import LocalInput, LocalLocation, Location, RelativeLocation, is_remote, redact
from raygen.core.units import duration, size
from raygen.core.version import __version__
from raygen.store.filesystem import PERMANENT

__all__ = ["app", "main"]


HELP = (
    "Generate very large, labelled, reproducible face data sets with diffusion models, on one machine or a Ray "
    "cluster.\n\n"
    "Most commands run a job: a YAML file with the settings of one command. `raygen init COMMAND` prints one with all "
    "settings; the folder jobs/ has examples. Settings can be overridden on the command line. To continue an "
    "interrupted job, run the same command again.\n\n"
    "Example: raygen generate job.yaml sampler.steps=25 resources.runner=ray resources.workers=8 out=runs/samples\n\n"
    "Exit codes: 0 success, 2 error in the configuration or the input, 3 too many rows failed, 4 infrastructure failed "
    "(storage, workers, time), 5 stored data is damaged, 130 interrupted."
)
JOBS, TOOLS = "Jobs (raygen COMMAND JOB.yaml)", "Tools"
app = typer.Typer(
    name="raygen",
    help=HELP,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
#: Errors of a name that another attempt does not mend.
UNUSABLE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES)
INTERRUPTED = KeyboardInterrupt("committed shards are kept; run the same command again to continue")


def _print_version(wanted: bool) -> None:
    if wanted:
        console.console.print(f"raygen {__version__}", markup=False)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


def _register(name: str, command: Command) -> None:
    """Add a command that runs jobs of one kind."""
    JobFile = Annotated[str, typer.Argument(help="job file (YAML)", metavar="JOB.yaml", show_default=False)]
    Overrides = Annotated[
        list[str] | None,
        typer.Argument(
            help="settings that replace those of the file, as dotted keys", metavar="KEY=VALUE", show_default=False
        ),
    ]
    DryRun = Annotated[
        bool, typer.Option("--dry-run", help="print the complete job, and estimate rows, bytes and time; write nothing")
    ]

    def run_job(job: JobFile, overrides: Overrides = None, dry_run: DryRun = False) -> None:
        loaded = load(parse(RelativeLocation, job, "JOB.yaml"), overrides or (), name)
        if dry_run:
            _estimate(loaded)
            return
        if idle := loaded.resources.idle():
            console.note(idle)
        with console.progress(name) as progress:
            result = loaded.start(progress)
        console.heading(f"{name}: {result.out}")
        console.facts(result.facts)

    text = (
        f"{command.help}\n\nReads {command.reads}, writes {command.writes}.\n\n"
        f"`raygen init {name}` prints a job file with all settings.\n\n"
        f"Example: raygen {name} job.yaml {command.example} out=runs/{name}"
    )
    app.command(name, help=text, short_help=command.summary, rich_help_panel=JOBS)(run_job)


for _name, _command in COMMANDS.items():
    _register(_name, _command)


def _estimate(job: Job) -> None:
    """Print a job with all its defaults, and what it would take."""
    console.console.print(yaml.safe_dump(job.document(), sort_keys=False).rstrip(), markup=False)
    estimate = job.estimate()
    console.heading("dry run: nothing was written")
    shards = {"shards": f"{estimate.shards} ({estimate.done_shards} are committed already)"} if estimate.shards else {}
    alone = job.resources.workers == 1 or job.resources.runner == "local"
    workers = "one worker" if alone else f"{job.resources.workers} workers"
    seconds = f"about {duration(estimate.seconds)} with {workers}" if estimate.seconds else "not estimated"
    stored = f"about {size(estimate.bytes)}" if estimate.bytes else "not estimated"
    console.facts({"rows": estimate.rows, **shards, "bytes": stored, "time": seconds})
    for note in filter(None, (*estimate.notes, job.resources.idle())):
        console.note(note)


KindName = Annotated[str, typer.Argument(help=f"one of {', '.join(COMMANDS)}", metavar="COMMAND", show_default=False)]


@app.command(rich_help_panel=TOOLS)
def init(
    kind: KindName,
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            help="kinds to choose, such as data=folder, model=ldm, format=webdataset; default: the first of each",
            metavar="KEY=KIND",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print a job file with all settings, their descriptions and defaults.

    Example: raygen init ingest data=folder > job.yaml
    """
    from raygen.commands.schema import job_template

    choices = {}
    for word in kinds or ():
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r}: a kind is chosen with KEY=KIND, such as data=folder")
        choices[key.removesuffix(".kind")] = value
    sys.stdout.write(job_template(kind, choices))


@app.command(rich_help_panel=TOOLS)
def schema(kind: KindName) -> None:
    """Print the JSON schema of the job files of a command, for editors and other programs."""
    from raygen.commands.schema import schema_text

    sys.stdout.write(schema_text(kind))


@app.command(rich_help_panel=TOOLS)
def quickstart(
    out: Annotated[str, typer.Option(help="folder for all results")] = "runs/quickstart",
    train: Annotated[
        bool, typer.Option("--train", help="train the models first, in place of the bundled ones (10 minutes)")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="number of Ray actors")] = 2,
    pictures: Annotated[int, typer.Option(min=64, help="number of pictures to generate")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="seed of the drawn faces and of the noise")] = 7,
) -> None:
    """Draw faces, plan, generate and evaluate on a local Ray, write a report.

    Takes a few minutes. Needs no GPU, data, weights or network.
    """
    from raygen.commands.quickstart import Quickstart, run_quickstart

    settings = {"out": out, "train": train, "workers": workers, "pictures": pictures, "seed": seed}
    run_quickstart(parse(Quickstart, settings, "quickstart"))


@app.command(rich_help_panel=TOOLS)
def verify(
    folder: Annotated[
        str,
        typer.Argument(
            help="folder or URL of a run, such as runs/quickstart/samples, or folder of a checkpoint",
            show_default=False,
        ),
    ],
    attempt: Annotated[int, typer.Option(min=0, help="number of the attempt to check")] = 0,
    decode: Annotated[bool, typer.Option(help="also decode every picture")] = True,
) -> None:
    """Check that every planned row is there exactly once and every byte is as committed.

    Exits with 5 where that is not so.
    """
    from raygen.commands.verify import verify_folder

    result = verify_folder(parse(Location, folder, "folder"), attempt, decode=decode)
    console.heading(f"verify: {result.url}")
    console.facts(result.facts(decoded=decode))
    for problem in result.problems[:50]:
        console.console.print(f"  problem: {problem}", markup=False)
    verdict = "[green]no problems[/green]" if result.ok else f"[red]{len(result.problems)} problems[/red]"
    console.console.print(f"  {verdict}")
    raise typer.Exit(0 if result.ok else 5)


@app.command(rich_help_panel=TOOLS)
def report(
    folder: Annotated[
        str, typer.Argument(help="folder of one or more runs, such as runs/quickstart", show_default=False)
    ],
    out: Annotated[
        str | None, typer.Option(help="file to write; default: FOLDER/report.html", show_default=False)
    ] = None,
    faces: Annotated[
        str | None,
        typer.Option(help="folder of the ingest run that rows refer to; default: found in FOLDER", show_default=False),
    ] = None,
    explore: Annotated[
        bool, typer.Option("--explore", help="also write explorer.html, which sorts, filters and enlarges all pictures")
    ] = False,
    pictures: Annotated[int, typer.Option(min=1, help="most pictures of the explorer, evenly spaced")] = 100_000,
) -> None:
    """Write a report of a folder of runs: one HTML file that needs no network.

    With --explore the folder explorer_files/ belongs to the second page: move them together.
    """
    from raygen.report.build import build_report
    from raygen.report.explorer import explorer_name

    folder = parse(Location, folder, "folder")
    if is_remote(folder):
        raise ConfigError(f"{folder}: a report is made of a local folder; copy the run first")
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder}: no such folder")
    out, faces = parse(Location | None, out, "--out"), parse(Location | None, faces, "--faces")
    page = build_report(folder, out, faces=faces, explore=pictures if explore else 0)
    console.heading(f"report: {page}")
    if explore:
        console.heading(f"explorer: {explorer_name(page)}.html")


@app.command("study-results", rich_help_panel=TOOLS)
def study_results(
    key: Annotated[str, typer.Argument(help="key of the study, such as runs/study.key.json", show_default=False)],
    answers: Annotated[
        list[str], typer.Argument(help="files of answers, or folders with such files", show_default=False)
    ],
    out: Annotated[str, typer.Option(help="folder for results.md, results.json and results.parquet")] = "runs/results",
    max_failed: Annotated[
        float, typer.Option(min=0, max=1, help="leave out raters who failed more than this share of their checks")
    ] = 1.0,
) -> None:
    """Evaluate the answers of a preference study: win rates, agreement, side bias, checks.

    Example: raygen study-results runs/study.key.json answers/ --out runs/study-results
    """
    from raygen.study.answers import answer_files, read_answers
    from raygen.study.build import read_key
    from raygen.study.results import evaluate_answers, rate_raters, write_results

    document = read_key(parse(Location, key, "KEY"))
    out = parse(Location, out, "--out")
    files = answer_files([parse(RelativeLocation, name, "ANSWERS") for name in answers])
    read, problems = read_answers(document, files)
    if not read:
        raise ConfigError("; ".join(["no line is an answer to this study", *problems[:3]]))
    raters = rate_raters(read, max_failed)
    counted = {rater.name for rater in raters if not rater.left_out}
    measures = evaluate_answers([a for a in read if a.rater in counted], list(document["methods"]))
    console.console.print(write_results(out, measures, raters, document, problems), markup=False)
    console.heading(f"study-results: {out}")


@app.command(rich_help_panel=TOOLS)
def compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(help="folders of evaluations", metavar="[NAME=]FOLDER...", show_default=False),
    ],
    out: Annotated[
        str | None, typer.Option(help="folder for comparison.json, .csv, .md and report.html", show_default=False)
    ] = None,
) -> None:
    """Print a table of several evaluations: columns are methods, rows metrics with intervals.

    Exits with 2, and says what differs, where they were not measured alike.

    Example: raygen compare ours=runs/evaluation SEAN=runs/sean --out runs/comparison
    """
    from raygen.commands.compare import print_comparison

    folder: str | None = None if out is None else parse(Location, out, "--out")
    for text in print_comparison(evaluations, folder):
        console.console.print(text, markup=False)


@app.command("import", rich_help_panel=TOOLS)
def import_(
    words: Annotated[
        list[str],
        typer.Argument(
            help="family of the checkpoint, or auto; its files; the folder to write. With --inspect only the files",
            metavar="FAMILY FILE... OUT",
            show_default=False,
        ),
    ],
    look: Annotated[bool, typer.Option("--inspect", help="print what the files contain; write nothing")] = False,
    image_size: Annotated[
        int | None, typer.Option(help="side of the pictures in pixels; default: as published", show_default=False)
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="weights to use, ema or raw; default: as published", show_default=False)
    ] = None,
    scaling_factor: Annotated[
        float | None, typer.Option(help="factor of the latents; default: as published", show_default=False)
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(help="vocabulary of the text encoder: vocab.txt, a folder or a name", show_default=False),
    ] = None,
) -> None:
    """Convert a published checkpoint to the diffusers layout.

    Every tensor is converted or left out for a stated reason; any other tensor is an error. Exits with 2 on errors.

    Example: raygen import auto model.ckpt runs/model
    """
    first, last = words[0], len(words) - 1
    for i, word in enumerate(words[1:], 1):  # told before torch is imported
        words[i] = parse(LocalInput if look or i < last else LocalLocation, word, "import")
        if (look or i < last) and not Path(words[i]).exists():
            raise ConfigError(f"{words[i]}: no such file")
    vocabulary = parse(RelativeLocation | None, vocabulary, "--vocabulary")
    from raygen.convert.convert import convert, inspect
    from raygen.convert.families import FAMILIES
    from raygen.convert.parts import Options

    family = first if first in FAMILIES else None
    files = words[1:] if family or first == "auto" else [parse(LocalInput, first, "import"), *words[1:]]
    options = Options(image_size, weights, scaling_factor, vocabulary)
    if look:
        account = inspect(files, family, options)
    elif len(files) < 2:
        raise ConfigError(f"import needs FAMILY FILE... OUT; families: {', '.join(FAMILIES)}, auto")
    else:
        account = convert(family, files[:-1], files[-1], options)
    console.heading(f"import: {files[0] if look else files[-1]}")
    console.facts(account.facts())
    for problem in account.problems:
        console.console.print(f"  problem: {problem}", markup=False)
    raise typer.Exit(2 if account.problems else 0)


@app.command(rich_help_panel=TOOLS)
def doctor(
    folder: Annotated[str, typer.Option(help="folder or URL that results would be written to")] = "runs",
    upload: Annotated[bool, typer.Option("--upload", help="check only what `ray job submit` would upload")] = False,
) -> None:
    """Check versions, accelerator, Ray, storage and disk space.

    Exits with 4 where a check fails.
    """
    from raygen.commands.doctor import examine, working_folder

    marks = {"ok": "[green]ok  [/green]", "note": "[yellow]note[/yellow]", "bad": "[red]bad [/red]"}
    checks = list(working_folder()) if upload else examine(parse(RelativeLocation, folder, "--folder"))
    for check in checks:
        console.console.print(f"  {marks[check.status]} [bold]{check.name}[/bold]: ", end="")
        console.console.print(check.detail, markup=False)
    raise typer.Exit(4 if any(check.status == "bad" for check in checks) else 0)


def _storage_failure(error: OSError) -> RaygenError:
    """What a disk or a server answered, as an error with one sentence."""
    place = f" ({error.filename})" if error.filename else ""
    text = f"{error.strerror or f'{type(error).__name__}: {error}'}{place}"
    if error.errno in UNUSABLE:
        return ConfigError(text)
    return (StorageError if error.errno in PERMANENT else InfrastructureError)(f"{text}; what was committed is kept")


def main() -> None:
    """Entry point: an error that raygen raises on purpose is printed as one sentence and sets the exit code."""
    try:
        code = app(standalone_mode=False)  # the code of a `typer.Exit`, which is caught inside
    except RaygenError as error:
        console.failure(error)
        sys.exit(error.exit_code)
    except OSError as error:
        failure = _storage_failure(error)
        console.failure(failure)
        sys.exit(failure.exit_code)
    except KeyboardInterrupt:
        console.failure(INTERRUPTED)
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of the command line
            error.message = redact(getattr(error, "message", ""))  # type: ignore[attr-defined]
            error.show()
            sys.exit(error.exit_code)
        sys.stderr.write(redact(traceback.format_exc()))  # a fault of ours, or of a library
        sys.exit(1)
    if code == 130:  # typer turns an interrupt into a silent exit
        console.failure(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)
