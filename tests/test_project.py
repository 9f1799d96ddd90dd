"""The project itself: public names, cluster file, lock file, README commands."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import yaml
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

import raygen
from raygen import __version__

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(raygen.__path__, "raygen.") if not m.name.endswith(("__main__",))
)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_exists_and_says_what_it_is(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if getattr(value, "__module__", None) == name and callable(value):
            assert value.__doc__, f"{name}.{public} has no docstring"


@pytest.mark.parametrize("path", sorted((ROOT / "raygen").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 400


def test_ray_accepts_the_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    kinds = config["available_node_types"]
    assert kinds[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert any("GPU" in kind["resources"] for kind in kinds.values())
    assert any("GPU" not in kind["resources"] for name, kind in kinds.items() if name != config["head_node_type"])
    commands = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert "0.0.0.0" not in commands
    assert "--dashboard-host=127.0.0.1" in commands


def test_the_lock_has_hashes_and_no_addresses():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|^-|file:", text, re.M)  # no address, and no line that is an option
    pinned = re.findall(r"^([a-zA-Z0-9._-]+)==", text, re.M)
    entries = re.findall(r"^[a-zA-Z0-9._-]+==.*(?:\\\n.*)+", text, re.M)
    assert len(pinned) == len(entries) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
    wanted = {"ray", "torch", "torchvision", "diffusers", "pyarrow", "fsspec", "s3fs", "lpips", "scipy", "hatchling"}
    assert wanted <= set(pinned)


def test_the_readme_shows_both_commands_first_and_names_files_that_exist():
    text = (ROOT / "README.md").read_text()
    first_screen = "\n".join(text.splitlines()[:20])
    assert "make quickstart" in first_screen
    assert "make test" in first_screen
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for job in set(re.findall(r"jobs/[\w/]+\.(?:yaml|sh)", text)):
        assert (ROOT / job).exists(), job


def test_make_help_lists_what_the_readme_uses():
    text = (ROOT / "Makefile").read_text()
    documented = set(re.findall(r"^([a-z-]+):.*## ", text, re.M))
    assert {"help", "quickstart", "test", "check"} <= documented
    for used in set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text())):
        assert used in documented or used == "and"


def test_the_build_backend_reads_the_version():
    """Without it no installation works; the tests themselves run from the folder and would not notice."""
    metadata = ProjectMetadata(str(ROOT), PluginManager())
    assert metadata.version == __version__
