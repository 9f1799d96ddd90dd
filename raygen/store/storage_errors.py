"""Errors of storage: which of them another attempt may mend, and what the others say."""

import errno
import time
from collections.abc import Callable
from typing import Final, TypeVar

from raygen.core.errors import ConfigError, InfrastructureError
from raygen.core.location import redact

__all__ = ["PASSING", "PERMANENT", "REFUSED", "code_of", "refusal", "retry", "twice"]


T = TypeVar("T")
RETRIES: Final = 4
#: Errors of a disk that another attempt does not mend: full, over quota, read-only.
PERMANENT: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
#: What S3 servers call requests that the same credentials, region and names will not mend; s3fs gives them no class.
REFUSED: Final = (
    *("InvalidToken", "TokenRefreshRequired", "CredentialsNotSupported", "AuthorizationHeaderMalformed", "401"),
    *("InvalidBucketName", "PermanentRedirect", "IllegalLocationConstraintException"),
)
#: Errors of a disk that may pass, or that another disk does not have, and of a server that is busy.
PASSING: Final = (
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EREMOTEIO,
    errno.ENODEV,
    errno.ENXIO,
    errno.EBUSY,
)


def code_of(error: BaseException) -> str:
    """What an S3 server called an error; empty for others."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def twice(call: Callable[[], T], error: type[OSError] = FileNotFoundError) -> T:
    """`call`, once more after `error`: another driver of the run ended, and removed a folder of temporary files."""
    try:
        return call()
    except error:
        return call()


def retry(call: Callable[[], T]) -> T:
    """Repeat a remote call after an `OSError`; errors that a repetition cannot fix are raised at once."""
    for attempt in range(RETRIES):
        try:
            return call()
        except (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            # The answer to the end of an upload in parts was lost: the client, repeating it, finds no upload.
            if code_of(error) != "NoSuchUpload" or attempt == RETRIES - 1:
                raise
        except OSError as error:
            if error.errno in PERMANENT or code_of(error) in REFUSED or attempt == RETRIES - 1:
                raise
        time.sleep(0.2 * 4**attempt)
    raise AssertionError("unreachable")


def refusal(url: str, verb: str, raised: Exception) -> ConfigError | InfrastructureError:
    """The error of a folder that cannot be `verb` (read, written) at all, whatever its back end raised.

    `InfrastructureError` where the server is away; else the URL, the bucket or the credentials are wrong.
    """
    error = (raised.__cause__ or raised) if isinstance(raised, InfrastructureError) else raised
    name = type(error).__name__
    away = isinstance(error, ConnectionError | TimeoutError) or "Connect" in name or "Timeout" in name
    away |= getattr(error, "errno", None) in PASSING
    kind = InfrastructureError if away else ConfigError
    return kind(f"{url}: cannot be {verb} ({name}: {redact(str(error))[:200]})")
