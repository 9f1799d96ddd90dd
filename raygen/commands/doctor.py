"""`raygen doctor`: is this machine ready, and what is wrong if not.

Knows versions, the accelerator, how torch and torchvision must match, Ray's authentication, storage. Changes
nothing except a probe file that it removes. Prints no secret: credentials are only said to be there or not.
"""

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from raygen.core.errors import RaygenError
from raygen.store.filesystem import FileStore

__all__ = ["Check", "examine"]


PACKAGES = (
    "raygen",
    "ray",
    "torch",
    "torchvision",
    "diffusers",
    "numpy",
    "pyarrow",
    "pillow",
    "fsspec",
    "s3fs",
    "scipy",
)
#: `ray job submit --working-dir` uploads the folder; Ray refuses more than this.
WORKING_DIR_LIMIT = 500e6
SKIPPED = {".venv", ".git", "runs", "__pycache__", ".mypy_cache", ".ruff_cache", "node_modules"}


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    status: Literal["ok", "note", "bad"]
    detail: str


def examine(folder: str) -> list[Check]:
    """Every check, in the order in which a person would mend things."""
    return [*_versions(), *_torch(), *_ray(), *_storage(folder), *_working_folder(), *_disk()]


def _versions() -> Iterator[Check]:
    found, absent = [f"python {sys.version.split()[0]}"], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            absent.append(name)
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Check("versions", "ok" if fits and not absent else "bad", ", ".join(found))
    if absent:
        yield Check("packages", "bad", f"not installed: {', '.join(absent)}")


def _torch() -> Iterator[Check]:
    try:
        import torch
    except ImportError as error:
        yield Check("torch", "bad", str(error))
        return
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        yield Check("accelerator", "ok", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
    else:
        yield Check("accelerator", "note", f"none; everything runs on {os.cpu_count()} CPU cores")
    try:
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        yield Check("torchvision", "ok", f"{torchvision.__version__} fits torch {torch.__version__}")
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        detail = f"does not fit torch {torch.__version__} ({str(error)[:120]}); install both from the same index"
        yield Check("torchvision", "bad", detail)


def _ray() -> Iterator[Check]:
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if token.is_file():
        open_to_all = stat.S_IMODE(token.stat().st_mode) & 0o077
        detail = f"RAY_AUTH_MODE {mode}; token file present"
        yield Check("ray token", "bad" if open_to_all else "ok", detail + (", readable by others" * bool(open_to_all)))
    else:
        yield Check("ray token", "note", f"RAY_AUTH_MODE {mode}; no token file yet (a local run makes one)")
    if mode != "token" and (os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_API_SERVER_ADDRESS")):
        yield Check("ray jobs", "note", "`ray job submit` sends the token only with RAY_AUTH_MODE=token exported")
    if os.environ.get("RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA") == "1":
        yield Check("ray data", "bad", "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA=1 lets Parquet files run code")
    dashboard = os.environ.get("RAY_DASHBOARD_HOST", "127.0.0.1")
    if dashboard not in ("127.0.0.1", "localhost", "::1") and mode != "token":
        yield Check("ray dashboard", "bad", f"listens on {dashboard} without a token: whoever reaches it runs code")


def _storage(folder: str) -> Iterator[Check]:
    try:
        storage = FileStore(folder)
        storage.require()
        once = storage.creates_once()
    except RaygenError as error:
        yield Check("storage", "bad", str(error))
        return
    if once:
        yield Check("storage", "ok", f"{folder} can be written, and refuses a second create")
    else:
        yield Check("storage", "note", f"{folder} can be written; no create-only writes, so commits get content names")
    if urlsplit(folder).scheme in ("s3", "s3a"):
        known = "AWS_ACCESS_KEY_ID" in os.environ or (Path.home() / ".aws" / "credentials").is_file()
        yield Check(
            "credentials", "ok" if known else "note", "found" if known else "none found; instance role or anonymous"
        )


def _working_folder() -> Iterator[Check]:
    total = 0
    for root, folders, files in os.walk("."):
        folders[:] = [name for name in folders if name not in SKIPPED]
        total += sum(os.lstat(os.path.join(root, name)).st_size for name in files)
        if total > 4 * WORKING_DIR_LIMIT:
            break
    detail = f"{total / 1e6:.1f} MB would be uploaded by `ray job submit --working-dir .`"
    yield Check("working folder", "ok" if total < WORKING_DIR_LIMIT else "bad", detail)


def _disk() -> Iterator[Check]:
    free = shutil.disk_usage(".").free
    yield Check("disk", "ok" if free > 5e9 else "note", f"{free / 1e9:.0f} GB free here")
