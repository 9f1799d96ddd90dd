"""Uploads to S3 in parts that nothing has finished.

s3fs sends what has 100 MB or more in parts. A process that is killed meanwhile leaves parts that no listing of files
shows and that cost as much as files. Other stores forget such parts by themselves.
"""

import errno
import time
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

__all__ = ["Upload", "abort", "unfinished"]


#: What a server answers that speaks S3 and has no such listing.
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


class Upload(NamedTuple):
    """An unfinished upload: the name of its file in the folder, its id, and its age by the server's clock."""

    name: str
    id: str
    age_s: float


def unfinished(fs: Any, root: str) -> list[Upload]:
    """Unfinished uploads of files in the folder `root` of a bucket; none where `fs` is no S3, or cannot list them.

    `PermissionError` where the account may not list them.
    """
    if not hasattr(fs, "abort_mpu"):
        return []
    bucket, _, folder = root.partition("/")
    prefix, found = f"{folder}/" if folder else "", []
    marks: dict[str, str] = {}
    while True:
        try:
            page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marks)
        except NotImplementedError:
            return []
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return []
            raise
        date = page.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        now = parsedate_to_datetime(date).timestamp() if date else time.time()
        found += [
            Upload(upload["Key"][len(prefix) :], upload["UploadId"], now - upload["Initiated"].timestamp())
            for upload in page.get("Uploads", ())
            if upload["Key"].startswith(prefix)  # not every server knows the parameter
        ]
        if not page.get("IsTruncated"):
            return found
        marks = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def abort(fs: Any, root: str, upload: Upload) -> None:
    """Remove the parts of `upload`; `FileNotFoundError` where it has ended meanwhile."""
    bucket, _, folder = root.partition("/")
    fs.abort_mpu(bucket, f"{folder}/{upload.name}" if folder else upload.name, upload.id)
