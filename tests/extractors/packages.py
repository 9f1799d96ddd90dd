"""Packages that are found by their metadata, without an installation."""

import sys
import tomllib
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent / "example_package"


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, offers: dict[str, str]) -> None:
    """Put a package on `sys.path` whose metadata offer `offers` in `raygen.extractors`; its modules are in `folder`."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{key} = {value}\n" for key, value in offers.items()]
    (metadata / "entry_points.txt").write_text("".join(["[raygen.extractors]\n", *lines]))
    monkeypatch.syspath_prepend(str(folder))


def install_example(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example package, with the entry points of its pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    install(folder, monkeypatch, project["name"], project["version"], project["entry-points"]["raygen.extractors"])
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLE)])
