"""What a path or URL in a job may look like, and how it is shown.

Every setting that names a folder, a file or a bucket has the type `Location`, and every file system is opened through
`check_location`. Results carry these texts: plan.json, run.json, Parquet metadata, reports and error messages.
"""

import os
import re
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

__all__ = ["LocalLocation", "Location", "check_credentials", "check_location", "is_remote", "redact"]

#: Values of location settings that are names and not paths.
RESERVED: Final = re.compile(r"bundled|hub|learned|pixels-\d+")
#: Set by Ray in the entry point of a submitted job.
RAY_JOB: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Set by jobs/submit.sh: the folder that the job was submitted from.
SUBMITTED_FROM: Final = "RAYGEN_SUBMITTED_FROM"
_WITH_HOST: Final = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "http", "https", "webdav", "sftp")
#: Parts of a query that open the file to everyone who reads the URL: presigned URLs of S3, GCS, Azure and others.
_SIGNED: Final = re.compile(r"(?i)(?:signature|credential|token|secret|password|passwd|api_?key|access_?key\w*|sig)=")
_USER: Final = re.compile(r"://[^/\s@'\"]+@")
_QUERY: Final = re.compile(r"(://[^\s?'\"]+)\?[^\s'\"]+")


def check_location(text: str) -> str:
    """`text` with `~` replaced by the home folder; `ValueError` where it cannot be used or must not be written down.

    Refused: empty texts and control characters; credentials in a URL, also inside a chain such as
    `simplecache::http://…`; an S3 or other URL without a bucket; file systems in memory; and, in a submitted Ray job,
    relative paths, because they would be in Ray's temporary copy of the working directory.
    """
    if not text.strip() or any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in text):
        raise ValueError("is empty or has control characters")
    check_credentials(text)
    for link in text.split("::"):
        scheme, separator, rest = link.partition("://")
        if scheme in ("memory", "reference", "data") and separator:
            raise ValueError(f"{scheme}:// holds no files that other processes can read")
        if scheme in _WITH_HOST and separator and not rest.strip("/"):
            raise ValueError(f"{link!r} names no bucket or host")
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


def check_credentials(text: str) -> None:
    """`ValueError` where a URL, or a link of a chain of URLs, carries a user, a password or a signature."""
    for link in text.split("::"):
        if "://" not in link:
            continue
        try:
            parts = urlsplit(link)
            user = parts.username or parts.password
        except ValueError as error:
            raise ValueError(f"is not a URL: {error}") from None
        if user or _SIGNED.search(parts.query):
            raise ValueError(
                "must not carry a user or password or a signature, because results and reports name it; "
                "use the environment's credentials"
            )


def is_remote(text: str) -> bool:
    """Whether `text` is a URL, or a chain of URLs, of anything but the local disk."""
    return "::" in text or ("://" in text and not text.startswith("file://"))


def redact(text: str) -> str:
    """`text` with the users, passwords and queries of all URLs in it replaced by `***`."""
    return _QUERY.sub(r"\1?***", _USER.sub("://***@", text))


def _check_local(text: str) -> str:
    if is_remote(text):
        raise ValueError(f"{redact(text)!r} is a URL; this writes to a local folder only, copy the result afterwards")
    return text.removeprefix("file://")


#: A folder, a file or a URL; see `check_location`.
Location = Annotated[str, Field(min_length=1), AfterValidator(check_location)]
#: A `Location` on a local disk.
LocalLocation = Annotated[str, Field(min_length=1), AfterValidator(check_location), AfterValidator(_check_local)]
