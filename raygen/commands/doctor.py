"""`raygen doctor`: checks that this machine is ready to run raygen.

Nothing is changed except for a probe file in the output folder, which is removed again. Credentials are never printed,
only whether there are any. A new check is a function in `CHECKS`.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from raygen.core.errors import RaygenError
from raygen.extractors.packages import offer_of, offered
from raygen.store.filesystem import FileStore

__all__ = ["CHECKS", "Check", "examine", "working_folder"]


PACKAGES: Final = (
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
#: Bytes. The server of `ray job submit --working-dir` refuses a larger package; the client of Ray 2.60 names 512 MiB.
WORKING_DIR_LIMIT: Final = 100 * 2**20
#: Endings of files that hold weights.
WEIGHTS: Final = frozenset({".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".onnx"})
#: Folders that `jobs/submit.sh` does not upload, so they are not counted as part of the working folder.
SKIPPED: Final = frozenset({".venv", ".git", "runs", "__pycache__", ".mypy_cache", ".ruff_cache", "node_modules"})


@dataclass(frozen=True)
class Check:
    """The result of one check: `ok`, `note` (worth knowing) or `bad` (has to be fixed)."""

    name: str
    status: Literal["ok", "note", "bad"]
    detail: str


def examine(folder: str) -> list[Check]:
    """Run all checks; `folder` is the folder or URL that results would be written to."""
    return [result for check in CHECKS for result in check(folder)]


def package_versions(folder: str) -> Iterator[Check]:
    """Python's version is supported, and the required packages are installed."""
    installed, missing = [f"python {sys.version.split()[0]}"], []
    for name in PACKAGES:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Check("versions", "ok" if supported and not missing else "bad", ", ".join(installed))
    if missing:
        yield Check("packages", "bad", f"not installed: {', '.join(missing)}")


def accelerator(folder: str) -> Iterator[Check]:
    """Which GPUs torch sees, and whether torchvision's compiled operations fit the installed torch."""
    try:
        import torch
    except ImportError as error:
        yield Check("torch", "bad", str(error))
        return
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        yield Check("accelerator", "ok", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
    else:
        yield Check("accelerator", "note", f"no GPU; everything runs on {os.cpu_count()} CPU cores")
    try:
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        yield Check("torchvision", "ok", f"{torchvision.__version__} fits torch {torch.__version__}")
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        detail = f"does not fit torch {torch.__version__} ({str(error)[:120]}); install both from the same index"
        yield Check("torchvision", "bad", detail)


def ray_security(folder: str) -> Iterator[Check]:
    """Ray asks for its token, the token file is private, and no setting lets a network or a file run code."""
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if token.is_file():
        readable = stat.S_IMODE(token.stat().st_mode) & 0o077
        detail = f"RAY_AUTH_MODE {mode}; token file present" + (", readable by other users" if readable else "")
        yield Check("ray token", "bad" if readable else "ok", detail)
    else:
        yield Check("ray token", "note", f"RAY_AUTH_MODE {mode}; no token file yet (a local run creates one)")
    if mode != "token" and (os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_API_SERVER_ADDRESS")):
        yield Check("ray jobs", "note", "`ray job submit` sends the token only with RAY_AUTH_MODE=token exported")
    if os.environ.get("RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA") == "1":
        yield Check("ray data", "bad", "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA=1 lets Parquet files run code")
    dashboard = os.environ.get("RAY_DASHBOARD_HOST", "127.0.0.1")
    if dashboard not in ("127.0.0.1", "localhost", "::1") and mode != "token":
        detail = f"listens on {dashboard} without a token: anyone who can reach it can run code"
        yield Check("ray dashboard", "bad", detail)


def storage(folder: str) -> Iterator[Check]:
    """The output folder can be written, and whether it refuses to create a file twice."""
    try:
        store = FileStore(folder)
        store.require()
        creates_once = store.creates_once()
    except RaygenError as error:
        yield Check("storage", "bad", str(error))
        return
    if creates_once:
        yield Check("storage", "ok", f"{folder} is writable and has create-only writes")
    else:
        detail = f"{folder} is writable; it has no create-only writes, so commits are named by their content"
        yield Check("storage", "note", detail)
    if urlsplit(folder).scheme in ("s3", "s3a"):
        if "AWS_ACCESS_KEY_ID" in os.environ or (Path.home() / ".aws" / "credentials").is_file():
            yield Check("credentials", "ok", "found")
        else:
            yield Check("credentials", "note", "none found; an instance role or anonymous access is used")


def local_disk(folder: str) -> Iterator[Check]:
    """The working folder is small enough to be uploaded to a cluster, and there is free space on its disk."""
    yield from working_folder()
    free = shutil.disk_usage(".").free
    yield Check("disk", "ok" if free > 5e9 else "note", f"{free / 1e9:.0f} GB free in the working folder")


def networks(folder: str) -> Iterator[Check]:
    """The networks that installed packages offer, and those that cannot be used."""
    for name in sorted(offered()):
        try:
            offer = offer_of(name)
        except RaygenError as error:
            yield Check("network", "note", str(error))
            continue
        own = offer.extractor
        yield Check(
            "network", "ok", f"{name}: {own.kind} of {offer.package}, sha256 {own.sha256[:12]}, licence {own.licence}"
        )


def working_folder() -> Iterator[Check]:
    """What `ray job submit --working-dir .` uploads, and which weights it leaves out because of .gitignore."""
    sizes = {name: os.lstat(name).st_size for name in _listed_by_git("--cached") or _walked() if os.path.exists(name)}
    total = sum(sizes.values())
    detail = f"{total / 1e6:.1f} MB in {len(sizes):,} files would be uploaded by `ray job submit --working-dir .`"
    if total > WORKING_DIR_LIMIT:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        named = ", ".join(f"{name} ({sizes[name] / 1e6:.0f} MB)" for name in largest)
        detail += f", and Ray's server refuses more than {WORKING_DIR_LIMIT / 2**20:.0f} MiB; the largest are {named}"
    yield Check("working folder", "ok" if total <= WORKING_DIR_LIMIT else "bad", detail)
    weights = [name for name in _listed_by_git("--ignored") if Path(name).suffix in WEIGHTS]
    if weights:
        named = ", ".join(weights[:3]) + (f" and {len(weights) - 3} more" if len(weights) > 3 else "")
        detail = f"{named}: named by .gitignore, so they are not uploaded; give jobs an absolute path or a URL of them"
        yield Check("weights", "note", detail)


def _listed_by_git(which: str) -> list[str]:
    """Files of the working folder that git tracks or ignores, without those of `SKIPPED`; empty outside of git."""
    command = ["git", "ls-files", "-z", "--others", "--exclude-standard", which]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        return []
    return [name for name in listed if name and not SKIPPED & set(Path(name).parts)]


def _walked() -> Iterator[str]:
    for root, folders, files in os.walk("."):
        folders[:] = [name for name in folders if name not in SKIPPED]
        yield from (os.path.join(root, name) for name in files)


#: In the order in which problems are best fixed.
CHECKS: Final[tuple[Callable[[str], Iterator[Check]], ...]] = (
    package_versions,
    accelerator,
    ray_security,
    storage,
    local_disk,
    networks,
)
