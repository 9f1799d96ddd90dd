"""What a path or URL in a job may look like, and how it is shown.

Every setting that names a folder, a file or a bucket has the type `Location` or `RelativeLocation`, and every file
system is opened by `raygen.store.filesystem.file_system`. Results carry these texts: plan.json, run.json, Parquet
metadata, reports and error messages. So `Config` refuses credentials in every text, and `RaygenError` shows none.
"""

import os
import re
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

__all__ = [
    "LocalInput",
    "LocalLocation",
    "Location",
    "RelativeLocation",
    "check_credentials",
    "check_location",
    "check_text",
    "folder_and_name",
    "is_remote",
    "redact",
]

#: Values of location settings that are names and not paths.
RESERVED: Final = re.compile(r"bundled|hub|learned|pixels-\d+")
#: Set by Ray in the entry point of a submitted job.
RAY_JOB: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Set by jobs/submit.sh: the folder that the job was submitted from.
SUBMITTED_FROM: Final = "RAYGEN_SUBMITTED_FROM"
_WITH_HOST: Final = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "http", "https", "webdav", "sftp")
#: The beginning of a URL that lacks a slash or both, which would be the name of a folder.
_NO_SLASHES: Final = re.compile(rf"({'|'.join((*_WITH_HOST, 'file'))}):(/?)(?!/)")
#: Schemes of Azure, whose URLs name a container before the `@`: abfs://container@account.dfs.core.windows.net/folder.
_CONTAINERS: Final = ("abfs", "abfss", "wasb", "wasbs")
#: Parts of a query that open the file to everyone who reads the URL: presigned URLs of S3, GCS, Azure and others.
_SIGNED: Final = (
    r"(?:signature|credential|token|secret|password|passwd|passphrase|pwd|auth|authorization|jwt|api_?key|"
    r"access_?key\w*|sig|(?<![A-Za-z])key)="
)
#: User and password in a URL. A password may hold `@` and, as in a typing error, `/`. `Path` turns `://` into `:/`.
_USER: Final = re.compile(
    r"(?<=\w\w)(:/+)(?:[^/\s:@]*:(?![0-9]*(?:/|$))\S*@|"
    + "".join(f"(?<!{name}://)" for name in _CONTAINERS)
    + r"[^/\s]*@)"
)
#: A private key in PEM form (RFC 7468), also with its line breaks written as `\\n`, and also without its end.
_PRIVATE_KEY: Final = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*-----|\Z)", re.DOTALL)
_QUERY: Final = re.compile(r"(:/+[^\s?'\"]+)\?[^\s'\"]+")
_SIGNED_URL: Final = re.compile(rf"(?i):/+[^\s?]+\?\S*?{_SIGNED}")
_CREDENTIALS: Final = (
    "must not carry a user or password or a signature, because results and reports name it; "
    "use the environment's credentials"
)


def check_location(text: str) -> str:
    """`text` with `~` replaced by the home folder; `ValueError` where it cannot be used or must not be written down.

    Refused: empty texts and control characters; credentials in a URL, also inside a chain such as
    `simplecache::http://…`; an S3 or other URL without a bucket; file systems in memory; and, in a submitted Ray job,
    relative paths, because they would be in Ray's temporary copy of the working directory.
    """
    _check_form(text)
    if is_remote(text) or RESERVED.fullmatch(text):
        return text
    local = text.removeprefix("file://")
    path = os.path.expanduser(local)
    if RAY_JOB in os.environ and not os.path.isabs(path):
        home = os.environ.get(SUBMITTED_FROM, "/absolute/path")
        raise ValueError(
            f"{text!r} is relative. A submitted Ray job runs in a temporary copy of the working directory, which Ray "
            f"deletes; write {os.path.normpath(os.path.join(home, path))} or a URL"
        )
    return path if path != local else text


def _check_form(text: str) -> str:
    """`text`; `ValueError` where it is wrong in every place and on every machine, see `check_location`."""
    if not text.strip() or any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in text):
        raise ValueError("is empty or has control characters")
    check_credentials(text)
    links = text.split("::")
    for number, link in enumerate(links, 1):
        scheme, separator, rest = link.partition("://")
        if (start := _NO_SLASHES.match(link)) is not None:
            raise ValueError(f"{link[:80]!r} lacks a slash: a URL begins with {start[1]}://")
        if (scheme in ("memory", "reference") and separator) or link.startswith("data:"):
            raise ValueError(f"{scheme.partition(':')[0]}:// holds no files that other processes can read")
        if scheme in _WITH_HOST and separator and (not rest or rest.startswith("/")):
            raise ValueError(f"{link!r} names no bucket or host")
        if not link or (separator and not rest and number == len(links)):  # zip:// is all of an archive that follows
            raise ValueError(f"{text[:80]!r} names no folder or file")
    return text


def check_credentials(text: str) -> None:
    """`ValueError` where a URL, or a link of a chain of URLs, carries a user, a password or a signature."""
    check_text(text)
    for link in text.split("::"):
        if "://" not in link:
            continue
        try:
            parts = urlsplit(link)
            user = parts.username if parts.scheme not in _CONTAINERS else None
        except ValueError:
            raise ValueError("is not a URL") from None  # the error of urlsplit repeats parts of it
        if user or parts.password:
            raise ValueError(_CREDENTIALS)


def check_text(text: str) -> None:
    """`ValueError` where `text` has a private key, or a URL in it a user, a password or a signature; or is no text."""
    if any("\ud800" <= letter < "\ue000" for letter in text):
        raise ValueError("has half of a surrogate pair")
    if _PRIVATE_KEY.search(text):
        raise ValueError("must not carry a private key, because results and reports name it; name the file that has it")
    if _USER.search(text) or _SIGNED_URL.search(text):
        raise ValueError(_CREDENTIALS)


def is_remote(text: str) -> bool:
    """Whether `text` is a URL, or a chain of URLs, of anything but the local disk."""
    return "::" in text or ("://" in text and not text.startswith("file://"))


def redact(text: str) -> str:
    """`text` with private keys, and the users, passwords and queries of all URLs in it, replaced by `***`."""
    return _QUERY.sub(r"\1?***", _USER.sub(r"\1***@", _PRIVATE_KEY.sub("***", text)))


def _check_relative(text: str) -> str:
    """`text` with `~` replaced by the home folder; errors as for `_check_form`."""
    _check_form(text)
    return text if is_remote(text) else os.path.expanduser(text)


def _check_local(text: str) -> str:
    if is_remote(text):
        raise ValueError(f"{redact(text)!r} is a URL; this writes to a local folder only, copy the result afterwards")
    return text.removeprefix("file://")


def _check_local_input(text: str) -> str:
    if is_remote(text):
        raise ValueError(f"{redact(text)!r} is a URL; this is read from a local file only, copy it to a disk first")
    return text.removeprefix("file://")


#: A folder, a file or a URL; see `check_location`.
Location = Annotated[str, Field(min_length=1), AfterValidator(check_location)]
#: A name below another `Location`, or an address of its own.
RelativeLocation = Annotated[str, Field(min_length=1), AfterValidator(_check_relative)]
#: A `Location` on a local disk.
LocalLocation = Annotated[str, Field(min_length=1), AfterValidator(check_location), AfterValidator(_check_local)]
#: A file on a local disk that is read.
LocalInput = Annotated[str, Field(min_length=1), AfterValidator(check_location), AfterValidator(_check_local_input)]


def folder_and_name(address: str) -> tuple[str, str]:
    """The folder of the file with this path or URL, and the name of the file in it."""
    folder, slash, name = address.rpartition("/")
    return folder or slash or ".", name
