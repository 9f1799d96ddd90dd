"""A password, a signature or a token in a URL is refused wherever a URL can be named, and is never written or shown.

The settings are found by walking the configs and the words of the command line, so that a new key is tested by itself.
"""

import importlib
import itertools
import json
import pkgutil
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import raygen
from raygen import cli
from raygen.commands.registry import COMMANDS, job_type, load
from raygen.core.config import Config, override, parse, read_yaml
from raygen.core.errors import ConfigError, InputError, from_record, to_record
from raygen.core.location import redact
from raygen.store.filesystem import FileStore, file_system
from raygen.store.parquet import Slice, read_slice
from raygen.store.run_store import RunStore
from tests.commandline import main
from tests.fakes import rewrite

CANARY = "hush0canary"
PLACES = (
    f"http://ada:{CANARY}@host/faces",
    f"simplecache::https://ada:{CANARY}@host/faces.zip",
    f"zip://a::s3://bucket/f.zip?X-Amz-Credential=x&X-Amz-Signature={CANARY}",
)


def configs():
    """Every Config class of raygen."""
    for module in pkgutil.walk_packages(raygen.__path__, "raygen."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, rest = {}, [Config]
    while rest:
        for kind in rest.pop().__subclasses__():
            if kind.__module__.startswith("raygen.") and kind.__name__ not in found:
                found[kind.__name__] = kind
                rest.append(kind)
    return found


CONFIGS = configs()
KEYS = [(name, key) for name, kind in sorted(CONFIGS.items()) for key in kind.model_fields]


def everything_in(folder):
    """The bytes of every file below a folder, with the values of Parquet files uncompressed."""
    for path in sorted(Path(folder).rglob("*")):
        yield str(path)
        if path.is_file():
            yield path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            yield f"{file.schema_arrow.metadata} {file.read().to_pylist()}"


def assert_nothing_in(folder):
    for text in everything_in(folder):
        assert CANARY not in text, text[:200]


# --- settings ---


def test_the_walk_finds_the_settings():
    assert len(KEYS) > 300
    places = {("CelebAMask", "root"), ("CelebAMask", "mask_folder"), ("JSONLines", "file"), ("Resources", "address")}
    assert {*places, ("SweepJob", "checkpoints"), ("CardConfig", "intended_use")} <= set(KEYS)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_no_setting_takes_a_password_in_any_form_and_no_error_repeats_it(name):
    for place in PLACES:
        shapes = (
            place,
            [place],
            {"a": place},
            {"a": [place]},
            {"a": {"b": {"c": place}}},
            {place: 1},
            f"see {place} .",
        )
        for key, value in itertools.product(CONFIGS[name].model_fields, shapes):
            with pytest.raises(ConfigError) as caught:
                parse(CONFIGS[name], {key: value})
            lines = str(caught.value).splitlines()
            assert any(line.startswith((f"job: {key}", "job: (top)")) for line in lines), lines
            assert CANARY not in str(caught.value)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", PLACES, ids=["user", "chain", "signature"])
def test_a_job_with_a_password_ends_with_2_before_anything_is_written_or_printed(tmp_path, capfd, command, place):
    keys = [key for key, field in job_type(command).model_fields.items() if "str" in str(field.rebuild_annotation())]
    for key in {*keys, "out", "data", "model"}:
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({"kind": command, "out": str(tmp_path / "out"), key: place}))
        for words in ([], ["--dry-run"]):
            code, said = main(capfd, command, str(path), *words)
            assert code == 2
            assert CANARY not in said
        path.write_text(yaml.safe_dump({"kind": command, "out": str(tmp_path / "out")}))
        code, said = main(capfd, command, str(path), f"{key}={place}")
        assert code == 2
        assert CANARY not in said
    assert [p.name for p in tmp_path.iterdir()] == ["job.yaml"]


def test_no_word_of_the_command_line_shows_a_password(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    group = typer.main.get_command(cli.app)
    tried = 0
    for name, command in group.commands.items():
        for parameter in command.params:
            if parameter.name in ("help", "dry_run") or getattr(parameter, "is_flag", False):
                continue
            for place in PLACES:
                if parameter.param_type_name == "argument":
                    words = [name, place, place, place]
                else:
                    needed = ["run"] * sum(p.param_type_name == "argument" for p in command.params)
                    words = [name, *needed, parameter.opts[0], place]
                code, said = main(capfd, *words)
                assert code == 2, words
                assert CANARY not in said
                assert "Traceback" not in said
                tried += 1
    assert tried > 60
    assert main(capfd, PLACES[0])[0] == 2
    assert CANARY not in main(capfd, f"--{PLACES[0]}")[1]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("filler", [0, 40, 60, 70, 170, 190, 200])
def test_a_message_that_is_cut_does_not_lose_what_the_password_is_known_by(tmp_path, filler):
    place = "x" * filler + f" http://ada:{CANARY * 30}@host/faces"
    path = tmp_path / "job.yaml"
    path.write_text(f"kind: ingest\ndata: {{root: {place}, size: [1, 2, }}")
    attempts = (
        lambda: parse(CONFIGS["Folder"], {"root": "x", "size": place}),
        lambda: parse(CONFIGS["Folder"], {"root": "x", "crop": place}),
        lambda: override({}, [place]),
        lambda: override({"a": 1}, [f"a.b={place}"]),
        lambda: override({}, [f"a={place}: ["]),
        lambda: read_yaml(path),
        lambda: load(str(tmp_path / place)),
    )
    for attempt in attempts:
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert CANARY not in str(caught.value)


# --- data ---


def test_rows_that_name_a_password_fail_one_by_one_and_leave_no_trace(tmp_path, capfd):
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "good.png")
    rows = [{"target": "good.png"}, *({"target": f"{place}/{i}.png"} for i, place in enumerate(PLACES))]
    rows += [{"target": f"m{i}.png", "mask": place} for i, place in enumerate(PLACES)]
    rows += [{"target": f"h{i}.png", "hint": place} for i, place in enumerate(PLACES)]
    (tmp_path / "faces.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "runs" / "faces"
    job = {
        "kind": "ingest",
        "data": {"kind": "jsonl", "root": str(tmp_path), "file": "faces.jsonl", "changes": "content"},
        "max_error_fraction": 1,
        "batch": 4,
        "out": str(out),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    code, said = main(capfd, "ingest", str(tmp_path / "job.yaml"))
    assert code == 0
    failed = [row for table in RunStore(str(out)).tables("quarantine") for row in table.to_pylist()]
    assert len(failed) == 9
    assert all("must not carry a user or password or a signature" in row["error"] for row in failed)
    more = main(capfd, "report", str(tmp_path / "runs"))[1] + main(capfd, "verify", str(out))[1]
    assert CANARY not in said + more
    assert_nothing_in(tmp_path / "runs")


class Talkative(MemoryFileSystem):
    """A storage whose errors repeat the address it asked, with the password that it took from its environment."""

    protocol = ("talkative",)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("talkative://"))

    def cat_file(self, path, **options):
        raise FileNotFoundError(f"GET http://ada:{CANARY}@host/{path}?sig={CANARY} gave 404")


def test_errors_of_a_storage_are_stored_and_shown_without_its_password(tmp_path, capfd):
    fsspec.register_implementation("talkative", Talkative, clobber=True)
    Talkative().pipe_file("/faces/a.png", b"")
    job = {
        "kind": "ingest",
        "data": {"kind": "folder", "root": "talkative://faces"},
        "batch": 1,
        "out": str(tmp_path / "runs" / "faces"),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    code, said = main(capfd, "ingest", str(tmp_path / "job.yaml"))
    assert code == 3
    assert "ada" not in said
    assert CANARY not in said
    assert_nothing_in(tmp_path / "runs")
    assert "404" in "".join(everything_in(tmp_path / "runs"))


def test_a_fault_of_the_program_shows_no_password(monkeypatch, capfd):
    def fail(folder):
        raise RuntimeError(f"cannot open {PLACES[0]}")

    monkeypatch.setattr("raygen.commands.doctor.examine", fail)
    code, said = main(capfd, "doctor")
    assert code == 1
    assert "RuntimeError: cannot open http://***@host/faces" in said
    assert CANARY not in said


def test_a_report_of_an_older_run_hides_what_its_settings_hold(tmp_path, capfd):
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "a.png")
    data = {"kind": "folder", "root": str(tmp_path)}
    raygen.run({"kind": "ingest", "data": data, "batch": 1, "out": str(tmp_path / "runs" / "faces")})
    plan = tmp_path / "runs" / "faces" / "attempt-00" / "plan.json"
    rewrite(
        plan,
        settings=json.loads(json.dumps(json.loads(plan.read_text())["settings"]).replace(str(tmp_path), PLACES[0])),
    )
    code, said = main(capfd, "report", str(tmp_path / "runs"))
    assert code == 0
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "http://***@host/faces" in page
    assert CANARY not in page + said


# --- the one place ---


def test_file_systems_are_opened_in_one_place():
    calls = [path.name for path in Path(raygen.__file__).parent.rglob("*.py") if "url_to_fs" in path.read_text()]
    others = [path for path in Path(raygen.__file__).parent.rglob("*.py") if "fsspec.open" in path.read_text()]
    assert (calls, others) == (["filesystem.py"], [])


@pytest.mark.parametrize("place", PLACES, ids=["user", "chain", "signature"])
def test_every_way_to_a_file_system_refuses_a_password(place):
    openings = (
        lambda: file_system(place),
        lambda: FileStore(place),
        lambda: read_slice(Slice(place, 0, 1)),
        lambda: raygen.load_dataset(place),
        lambda: raygen.evaluate(place, place),
        lambda: importlib.import_module("raygen.models.checkpoint").load(place),
        lambda: importlib.import_module("raygen.report.build").build_report(place),
    )
    for opening in openings:
        with pytest.raises((ConfigError, InputError)) as caught:
            opening()
        assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"http://ada:{CANARY}@host/a",
        f"http:/ada:{CANARY}@host/a",
        f"HTTPS://{CANARY}@host/a",
        f"http://ada:x@{CANARY}@host/a",
        f"http://ada:x/{CANARY}@host/a",
        f"http://ada:'{CANARY}\"@host/a",
        f"zip://a::http://ada:x::{CANARY}@host/a",
        f"abfs://container:{CANARY}@account.dfs.core.windows.net/a",
        f"https://host/a?X-Goog-Signature={CANARY}",
        f"https://host/a?version=1&sv=2&sig={CANARY}",
        f"https://host/a?key={CANARY}",
        f"https://host/a?access_token={CANARY}",
        f"ray://ada:{CANARY}@host:10001",
    ],
)
def test_passwords_in_all_spellings_are_refused_and_hidden(text):
    with pytest.raises(ConfigError, match=r"must not carry|is not a URL"):
        parse(CONFIGS["Folder"], {"root": text})
    with pytest.raises(ConfigError, match="must not carry"):
        parse(CONFIGS["CardConfig"], {"title": f"from {text}."})
    assert CANARY not in redact(f"error at {text}, see {text!r}")
    assert CANARY not in str(from_record(to_record(InputError(text))))


@pytest.mark.parametrize(
    "text",
    [
        "abfs://container@account.dfs.core.windows.net/faces",
        "s3://bucket/set@2/faces",
        "https://host:8080/a@b",
        "https://host/f.zip?version=3&monkey=1",
        "zip://a.png::s3://bucket/f.zip",
        "C:/pictures@home",
    ],
)
def test_urls_without_passwords_are_taken(text):
    assert parse(CONFIGS["Folder"], {"root": text}).root == text
    assert redact(text).startswith(text.partition("?")[0])
