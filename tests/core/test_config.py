"""The grammar of a job: errors that help, overrides, bounded YAML, run ids, exit codes."""

import pickle
from typing import Annotated, Literal

import pytest
from pydantic import Field

from raygen.commands import base
from raygen.core.config import Config, Resources, override, parse, read_yaml
from raygen.core.errors import (
    ConfigError,
    InfrastructureError,
    InputError,
    IntegrityError,
    RaygenError,
    TooManyBadRows,
)
from raygen.core.hashing import canonical, digest, run_id


class Pixels(Config):
    kind: Literal["pixels"] = "pixels"
    side: int = Field(64, ge=8, le=512)


class Latents(Config):
    kind: Literal["latents"] = "latents"
    channels: int = 4
    sides: tuple[int, ...] = (16,)


class Job(base.Job):
    kind: Literal["generate"] = "generate"
    model: Annotated[Pixels | Latents, Field(discriminator="kind")] = Pixels()
    guidance: dict[str, float] = Field(default_factory=dict)
    steps: int = Field(50, ge=1)
    seed: int
    out: str = "out"

    def run(self, report):
        raise NotImplementedError

    def estimate(self):
        raise NotImplementedError


def job(**changes):
    return override({"kind": "generate", "seed": 1}, [f"{k.replace('__', '.')}={v}" for k, v in changes.items()])


def error(document, kind=Job):
    with pytest.raises(ConfigError) as caught:
        parse(kind, document, "jobs/x.yaml")
    return str(caught.value)


# --- errors ---


@pytest.mark.parametrize(
    ("key", "path", "near"),
    [
        ("sede", "sede", "seed"),
        ("model.sidee", "model.sidee", "side"),
        ("resorces", "resorces", "resources"),
        ("resources.worker", "resources.worker", "workers"),
    ],
)
def test_an_unknown_key_names_file_path_and_nearest_key(key, path, near):
    message = error(override({"seed": 1, "model": {"kind": "pixels"}}, [f"{key}=1"]))
    assert message == f"jobs/x.yaml: {path}: unknown key; did you mean {near!r}?"


def test_the_nearest_key_is_one_that_is_valid_just_there():
    # `sides` is nearer to `sidse`, but belongs to the other model.
    message = error({"seed": 1, "model": {"kind": "pixels", "sidse": 1}})
    assert message.endswith("did you mean 'side'?")
    assert "workers" not in error({"seed": 1, "wrkers": 3}).partition("unknown key")[2]
    assert error({"seed": 1, "zzz": 3}) == "jobs/x.yaml: zzz: unknown key"


def test_several_faults_are_told_at_once():
    lines = sorted(error({"model": {"kind": "pixels", "side": 4}, "resources": {"runner": "slurm"}}).splitlines())
    assert [line.split(": ")[1] for line in lines] == ["model.side", "resources.runner", "seed"]
    assert "greater than or equal to 8 (got 4)" in lines[0]
    assert "'slurm' is not one of local, ray" in lines[1]
    assert "Field required" in lines[2]


def test_a_choice_of_numbers_lists_them():
    class Sign(Config):
        value: Literal[-1, 1]
        word: Literal["v2", "b"] = "b"

    assert error({"value": 0, "word": "a"}, Sign).splitlines() == [
        "jobs/x.yaml: value: 0 is not one of -1, 1",
        "jobs/x.yaml: word: 'a' is not one of v2, b",
    ]


def test_an_unknown_kind_lists_the_known_ones():
    assert "model.kind: 'latent' is not one of pixels, latents; did you mean 'latents'?" in error(
        {"seed": 1, "model": {"kind": "latent"}}
    )
    assert "model.kind: is missing; it is one of pixels, latents" in error({"seed": 1, "model": {"side": 8}})


def test_a_list_with_a_bad_member_is_not_called_too_short():
    class Lists(Config):
        members: tuple[Annotated[int, Field(ge=1)], ...] = Field(..., min_length=1)

    with pytest.raises(ConfigError) as caught:
        parse(Lists, {"members": [0]})
    assert str(caught.value) == "job: members.0: Input should be greater than or equal to 1 (got 0)"
    with pytest.raises(ConfigError, match=r"members: .*at least 1 item"):
        parse(Lists, {"members": []})


def test_places_in_lists_are_named():
    assert "model.sides.1:" in error({"seed": 1, "model": {"kind": "latents", "sides": [1, "x"]}})


def test_a_job_that_is_no_mapping_is_refused():
    assert "(top)" in error([1, 2])


def test_configs_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        parse(Job, job()).out = "elsewhere"


# --- files ---


def test_a_job_file_is_a_mapping(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("seed: 1\n")
    assert read_yaml(path) == {"seed": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1", "a mapping"),
        ("", "a mapping"),
        ("a: [1", "not valid YAML"),
        ("a: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("[" * (1 << 19), "nested deeper"),
        ("{a: " * 100, "nested deeper"),
        ("a: &x 1\nb: *x", "aliases"),
        ("\x00", "not valid YAML"),
        ("a: " + "x" * (1 << 20), "larger than"),
    ],
)
def test_bad_files_are_configuration_errors_that_name_the_file(tmp_path, content, message):
    path = tmp_path / "job.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_an_alias_bomb_is_refused_before_it_unfolds(tmp_path):
    path = tmp_path / "job.yaml"
    lines = ["a: &a [lol, lol]"] + [
        f"{b}: &{b} [*{a}, *{a}, *{a}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="aliases"):
        read_yaml(path)


def test_a_missing_file_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "absent.yaml")


# --- overrides ---


def test_overrides_make_groups_and_read_yaml_values():
    document = {"a": {"b": 1}, "keep": [1]}
    words = ["a.b=2", "a.c.d=[x, 3]", "e=true", "f=", "g=text with = sign", "h={k: 1.5}"]
    changed = override(document, words)
    assert changed == {
        "a": {"b": 2, "c": {"d": ["x", 3]}},
        "keep": [1],
        "e": True,
        "f": None,
        "g": "text with = sign",
        "h": {"k": 1.5},
    }
    assert document == {"a": {"b": 1}, "keep": [1]}


def test_the_last_override_of_a_key_counts():
    assert override({}, ["a=1", "a=2"]) == {"a": 2}


@pytest.mark.parametrize(
    "word", ["a", "=1", "a..b=1", ".a=1", "a.=1", "a=[", "a=" + "[" * 20_000, "a=&x [*x]", "x.y=1"]
)
def test_bad_overrides_are_refused_by_name(word):
    with pytest.raises(ConfigError) as caught:
        override({"x": 1}, [word])
    assert repr(word[:80]) in str(caught.value)


def test_numbers_in_exponent_form_reach_number_fields():
    assert parse(Resources, override({}, ["shard_timeout_s=1e3"])).shard_timeout_s == 1000


# --- run ids ---


def test_run_id_does_not_depend_on_the_order_of_keys_or_on_spelled_out_defaults():
    one = parse(Job, {"seed": 1, "steps": 50, "guidance": {"text": 1, "mask": 2}})
    other = parse(Job, {"guidance": {"mask": 2.0, "text": 1.0}, "seed": 1, "model": {"kind": "pixels"}})
    assert run_id(one.settings()) == run_id(other.settings())
    assert len(run_id(one.settings())) == 16


@pytest.mark.parametrize(
    "change", ["resources.workers=8", "resources.runner=ray", "resources.cpus=2", "resources.max_attempts=1"]
)
def test_run_id_does_not_depend_on_resources(change):
    assert run_id(parse(Job, job()).settings()) == run_id(parse(Job, override(job(), [change])).settings())


@pytest.mark.parametrize("change", ["seed=2", "steps=51", "model.side=32", "guidance={mask: 1}"])
def test_run_id_depends_on_settings(change):
    changed = override({"seed": 1, "model": {"kind": "pixels"}}, [change])
    assert run_id(parse(Job, job()).settings()) != run_id(parse(Job, changed).settings())


def test_canonical_bytes_are_plain_sorted_json():
    assert canonical({"b": 1, "a": [1.5, None, "é"]}) == '{"a":[1.5,null,"é"],"b":1}'.encode()
    assert canonical(Pixels()) == canonical({"side": 64, "kind": "pixels"})
    with pytest.raises(TypeError, match="canonical"):
        canonical({"a": object()})
    assert digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# --- errors as a tree ---


def test_exit_codes_are_the_published_ones():
    codes = {ConfigError: 2, InputError: 2, TooManyBadRows: 3, InfrastructureError: 4, IntegrityError: 5}
    for kind, code in codes.items():
        assert issubclass(kind, RaygenError)
        assert kind.exit_code == code


def test_input_errors_keep_their_reason_through_another_process():
    error = pickle.loads(pickle.dumps(InputError("the file ends early", reason="truncated")))
    assert (error.reason, str(error)) == ("truncated", "truncated: the file ends early")
