"""Hostile YAML and JSON: one sentence that names the line, or a value; never another error."""

import json

import pytest

from raygen.core.config import Config, override, parse, read_yaml
from raygen.core.documents import load_json, load_yaml
from raygen.core.errors import ConfigError

LONG = "9" * 5000


class Job(Config):
    count: int = 1
    share: float = 1
    name: str = ""
    free: dict[str, object] | None = None


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("a: 1\nb: 2\na: 3", "a", "lines 1 and 3"),
        ("a: 1\n\n'a': 3", "a", "lines 1 and 3"),
        ("data:\n  root: x\n  limit: 1\n  root: y\n", "root", "lines 2 and 4"),
        ("a:\n- {b: 1, c: 2, b: 3}", "b", "line 2"),
        ("a: {1: x,\n '1': y}", "1", "lines 1 and 2"),
        ("a: 1\nb: {a: 1}\nc: {a: 1}\nb: 3", "b", "lines 2 and 4"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_both_lines(tmp_path, text, key, lines):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"job\.yaml: line .*the key '{key}' is there twice, in {lines}\)$"):
        read_yaml(path)


def test_a_key_may_be_there_once_in_each_group():
    assert load_yaml("a: {b: 1}\nb: {b: 2, a: {b: 3}}", "x") == {"a": {"b": 1}, "b": {"b": 2, "a": {"b": 3}}}
    with pytest.raises(ConfigError, match="is there twice, in line 1"):
        override({}, ["h={k: 1, k: 2}"])


@pytest.mark.parametrize(
    "value",
    [
        LONG,
        f"-{LONG}",
        "0x" + "f" * 5000,
        "0b" + "1" * 20_000,
        "1" + ":59" * 2000,
        f"!!int '{LONG}'",
        "!!int x",
        "!!float x",
        "!!bool x",
        "!!timestamp x",
        "!!binary a",
        "2024-13-45",
        "2024-01-01T99:00:00Z",
        '"\\ud800"',
        "{2024-01-01: 1}",
        "{!!binary aGk=: 1}",
        "{[a]: 1}",
        "{{a: 1}: 1}",
        f"{{{LONG}: 1}}",
        "!!python/name:os.system",
        "!!set {a, a}",
        "a\0b",
        "\x1b",
    ],
)
def test_values_that_no_setting_can_have_are_one_sentence_with_the_line(tmp_path, value):
    path = tmp_path / "job.yaml"
    path.write_text(f"count: 1\nfree: {value}\n")
    with pytest.raises(ConfigError, match=r"job\.yaml: (line 2|not valid)") as caught:
        read_yaml(path)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        override({}, [f"free={value}"])


@pytest.mark.parametrize("key", ["count", "share", "name", "free", LONG])
def test_a_number_of_thousands_of_digits_is_refused_from_python_too(key):
    number = 10**5000
    with pytest.raises(ConfigError):
        override({key: number}, [])
    with pytest.raises(ConfigError) as caught:
        parse(Job, {key: number, "other": 1})
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("document", [{"free": {(1, 2): 3}}, {"a": {b"x": 1}}])
def test_a_dictionary_that_json_cannot_hold_is_refused(document):
    with pytest.raises(ConfigError, match=r"not made of plain values"):
        override(document, [])
    endless = {}
    endless["a"] = endless
    with pytest.raises(ConfigError, match=r"not made of plain values"):
        override(endless, [])


def test_half_of_a_surrogate_pair_is_refused_in_every_text():
    for document in ({"name": "\ud800"}, {"free": {"a": ["\udfff"]}}, {"free": {"\ud800": 1}}):
        with pytest.raises(ConfigError, match=r"surrogate|unicode"):
            parse(Job, document)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, LONG, f'{{"a": [{LONG}]}}', "9" * 400, '"\\ud800"', "", "{", b"\xff"]
)
def test_json_that_cannot_be_read_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".") as caught:
        load_json(text)
    assert len(str(caught.value)) < 300


def test_json_with_large_numbers_and_any_text_is_read():
    value = {"a": int("9" * 399), "b": 1e308, "c": "\U0001f600 é", "d": [None, True]}
    assert load_json(json.dumps(value)) == value
