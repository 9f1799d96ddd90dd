"""Files by URL: their names, their content, what tells a changed file from the one that was listed, and row ids."""

import hashlib
import lzma
import os
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from fsspec.implementations.local import LocalFileSystem

from raygen.core.errors import ConfigError, InputError
from raygen.core.location import redact
from raygen.store.filesystem import file_system
from raygen.store.schemas import check_id

__all__ = [
    "MAX_FILE_BYTES",
    "Files",
    "Noticed",
    "base_name",
    "join",
    "left_out",
    "read",
    "refuse_collisions",
    "safe_id",
    "system_file",
]


#: How a changed file is noticed: by its size and time (or ETag), or by a hash of its content.
Noticed = Literal["time", "content"]

#: Files are read whole, so a worker needs as much memory. The largest pictures that are read have 0.6 GB as plain RGB.
MAX_FILE_BYTES: Final = 1 << 30

#: Keys of a storage's listing that change with the content of a file; the first that is there is used.
_VERSION_KEYS: Final = (
    *("ETag", "etag", "md5Hash", "content_md5", "checksum", "CRC"),
    *("mtime", "LastModified", "last_modified", "updated", "modified", "created"),
)
#: Folders that disks, NAS systems and archive programs make beside the pictures, in lower case.
_SYSTEM_FOLDERS: Final = frozenset(
    {
        *("__macosx", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin"),
        *("@__thumb", "@tmp", "@sharebin"),
        *("system volume information", "lost+found"),
    }
)
_SYSTEM_FILES: Final = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})


def system_file(name: str) -> bool:
    """Whether a relative name is that of a hidden file, or lies in a hidden folder or one of the system."""
    parts = name.lower().split("/")
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in parts) or parts[-1] in _SYSTEM_FILES


def left_out(names: Iterable[str]) -> str:
    """`left out: 3 .gif, 1 .txt`: how many of these files there are, by ending; those of the system do not count."""
    endings = Counter(PurePosixPath(name).suffix.lower() or "without ending" for name in names if not system_file(name))
    shown = [f"{n:,} {ending}" for ending, n in endings.most_common(8)]
    others = f"{endings.total() - sum(n for _, n in endings.most_common(8)):,} with other endings"
    return f"left out: {', '.join(shown + [others] * (len(endings) > 8))}" if endings else ""


class Files:
    """The files below a folder, by URL. Errors of the storage are raised as `ConfigError`.

    Files of more than `max_bytes`, and those that are not regular files, are listed but never read.
    """

    def __init__(self, url: str, max_bytes: int = MAX_FILE_BYTES) -> None:
        self.url = url
        self.max_bytes = max_bytes
        self._details: dict[str, Mapping[str, Any]] = {}  # address -> what the storage lists about the file
        with self._explained():
            self._fs, root = file_system(url)
            self._fs.invalidate_cache()  # an earlier listing in this process may be older than the files
            self._root = root.rstrip("/")
            self.local = isinstance(self._fs, LocalFileSystem)
            if not self._fs.exists(root):
                raise ConfigError(f"{url}: no such folder or bucket")
            if not self._fs.isdir(root):
                hint = f"; zip://::{url} reads what is in it" if url.endswith(".zip") else ""
                raise ConfigError(f"{url}: not a folder{hint}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # each storage back end has its own exception classes
            raise ConfigError(f"{self.url}: cannot be read ({_shortened(error)})") from error

    def address(self, name: str) -> str:
        """The address of `name` (relative to the folder, or an address already) for other processes."""
        if "://" in name or name.startswith("/"):
            return name
        return join(self._root if self.local else self.url, name)

    def _path(self, name: str) -> str:
        return "/".join(part for part in (self._root, name) if part)

    def names(self, folder: str = "", *, depth: int | None = None) -> list[str]:
        """Sorted names, relative to `folder`, of the files below it; empty where there is no such folder."""
        top = self._path(folder)
        with self._explained():
            if top and not self._fs.isdir(top):
                return []
            if self.local:
                names = [path[len(top) :].lstrip("/") for path in _walk(top, depth)]
            else:
                listed = self._fs.find(top, maxdepth=depth, detail=True)
                names = [str(path)[len(top) :].lstrip("/") for path in listed]
                addresses = (self.address(f"{folder}/{name}" if folder else name) for name in names)
                self._details.update(zip(addresses, listed.values(), strict=True))
        for name in names:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise ConfigError(f"{self.url}: file name {name!r} is not valid UTF-8; rename it") from None
        return sorted(names)

    def examples(self) -> str:
        """The end of an error message: a few names of files that are there; empty for an empty folder."""
        names = [name for name in self.names(depth=2) or self.names(depth=4) if not system_file(name)]
        return f"; found: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""

    def first(self, candidates: Sequence[str]) -> str | None:
        """The first of `candidates` that exists."""
        with self._explained():
            return next((name for name in candidates if self._fs.exists(self._path(name))), None)

    def text(self, name: str) -> str:
        """Content of a small text file in UTF-8 or, with a byte order mark, UTF-16; `ConfigError` otherwise."""
        address = self.address(name)
        try:
            data = read(address, self.max_bytes)
            text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
        except FileNotFoundError:
            raise ConfigError(f"{address}: no such file") from None
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise ConfigError(
                f"{address}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
            ) from error
        except (OSError, InputError) as error:
            raise ConfigError(f"{address}: cannot be read ({error})") from error
        if "\0" in text:  # every second byte of UTF-16 without its mark, and half of UTF-32
            raise ConfigError(f"{address}: holds null bytes, as no text in UTF-8 does; save the file as UTF-8")
        return text

    def optional_text(self, chosen: str | None, usual: Sequence[str]) -> tuple[str, str] | None:
        """Name and content of the file `chosen`, which must exist, or of the first of `usual` that exists."""
        name = chosen or self.first(usual)
        return None if name is None else (name, self.text(name))

    def versions(self, addresses: Sequence[Sequence[str]], noticed: Noticed) -> list[list[str]]:
        """For each address 12 hexadecimal digits that change when the file is replaced; `absent` for a missing file.

        `time` asks a local disk for size and modification time, and of other storage uses what `names` listed; it
        reads no file. `content` reads every file.
        """
        with self._explained():
            if noticed == "time":
                return [[self._listed_version(address) for address in group] for group in addresses]
            with ThreadPoolExecutor(16) as threads:
                return [list(threads.map(self._content_version, group)) for group in addresses]

    def _content_version(self, address: str) -> str:
        try:
            return hashlib.sha256(read(address, self.max_bytes)).hexdigest()[:12]
        except (OSError, InputError):
            return "absent"

    def _listed_version(self, address: str) -> str:
        facts: tuple[object, ...]
        try:
            if "://" in address:
                entry = self._details.get(address) or self._entry(address)
                facts = (entry["size"], next((entry[key] for key in _VERSION_KEYS if entry.get(key) is not None), None))
            else:
                status = os.stat(address)
                facts = (status.st_size, status.st_mtime_ns)
        except (OSError, ValueError, KeyError, ConfigError):  # whatever the row names, its error belongs to the row
            return "absent"
        except Exception as error:  # see `_explained`; the error has to name this file, not the folder
            raise ConfigError(f"{address}: cannot be read ({_shortened(error)})") from error
        return hashlib.sha256(repr(tuple(map(str, facts))).encode()).hexdigest()[:12]

    def _entry(self, address: str) -> Mapping[str, Any]:
        """What the storage lists about a file outside the folders that were listed; its whole folder is listed once."""
        fs, path = file_system(address)
        parent, chain = address.partition("::")[0].rpartition("/")[0], address.partition("::")[2]
        for entry in fs.ls(path.rpartition("/")[0], detail=True):
            name = str(entry["name"]).rpartition("/")[2]
            self._details.setdefault(f"{parent}/{name}" + (f"::{chain}" if chain else ""), entry)
        return self._details.get(address) or {}


def _walk(top: str, depth: int | None, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Files below a local folder; follows links. fsspec's `find` would silently skip folders that it cannot read."""
    status = os.stat(top or "/")
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise ConfigError(
            f"{top}: a symbolic link leads back to a folder above it, so the listing has no end; remove it"
        )
    for entry in os.scandir(top or "/"):
        if not entry.is_dir():
            yield entry.path
        elif depth is None or depth > 1:
            yield from _walk(entry.path, None if depth is None else depth - 1, (*above, here))


def read(address: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The content of one regular file of at most `max_bytes`.

    `InputError`: `name` where no file can have this name, `special` for pipes, devices and sockets, `too_large`,
    `archive` for a damaged, encrypted or unknown member of an archive.
    """
    try:
        if "://" not in address:
            return _read_local(address, max_bytes)
        fs, path = file_system(address)
        return _read_local(path, max_bytes) if isinstance(fs, LocalFileSystem) else _read_remote(fs, path, max_bytes)
    except ConfigError as error:
        raise InputError(str(error), reason="name") from error
    except ValueError as error:  # a null byte, or a character that the system's encoding lacks
        raise InputError(f"is no file name ({error})", reason="name") from error
    except _MEMBER_ERRORS as error:
        if type(error) is RuntimeError and "encrypted" not in str(error):
            raise
        raise InputError(f"cannot be unpacked ({error})", reason="archive") from error


#: What readers of archives raise for one member; RuntimeError is zipfile's for an encrypted one.
_MEMBER_ERRORS: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


def _read_local(path: str, max_bytes: int) -> bytes:
    status = os.stat(path)
    # Opening a pipe waits for a writer, and a device may never end.
    kind = next((name for test, name in _SPECIAL.items() if test(status.st_mode)), None)
    if kind is not None:
        raise InputError(f"is a {kind}, not a regular file", reason="special")
    if status.st_size > max_bytes:
        raise _too_large(f"{status.st_size:,}", max_bytes)
    return Path(path).read_bytes()


def _read_remote(fs: Any, path: str, max_bytes: int) -> bytes:
    """One request: a byte more than is allowed is asked for, in place of the size first."""
    try:
        data = bytes(fs.cat_file(path, start=0, end=max_bytes + 1))
    except (FileNotFoundError, PermissionError):
        raise
    except Exception:  # object stores have no bytes from 0 on of an empty file: status 416
        if fs.size(path) != 0:
            raise
        return b""
    if len(data) > max_bytes:
        raise _too_large("more", max_bytes)
    return data


def _too_large(size: str, max_bytes: int) -> InputError:
    return InputError(f"has {size} bytes, and `max_file_bytes` is {max_bytes:,}", reason="too_large")


_SPECIAL: Final[Mapping[Callable[[int], bool], str]] = {
    stat.S_ISFIFO: "named pipe",
    stat.S_ISCHR: "device",
    stat.S_ISBLK: "device",
    stat.S_ISSOCK: "socket",
}


def _shortened(error: Exception) -> str:
    return f"{type(error).__name__}: {redact(str(error))[:200]}"


# --- names --------------------------------------------------------------------------------------------------


def join(folder: str, name: str) -> str:
    """The address of `name` below the folder with this address, which may be a chained URL such as `zip://a::b.zip`."""
    head, chain, rest = folder.partition("::")
    return f"{head if head.endswith('/') else head + '/'}{name}{chain}{rest}"


def base_name(address: str) -> str:
    """The file name at the end of an address."""
    return PurePosixPath(address.partition("::")[0]).name


def safe_id(name: str) -> str:
    """A row id for a relative file name, at most 96 characters long, so that plans can append to it.

    Folders are joined by `-`; characters that ids cannot have are replaced. Different names may give the same id:
    see `refuse_collisions`.
    """
    composed = unicodedata.normalize("NFC", name).replace("/", "-")
    spelled = re.sub(r"[^A-Za-z0-9._-]", lambda m: "_" if m[0].isascii() else f"u{ord(m[0]):x}", composed)
    tidy = re.sub(r"\.{2,}", ".", spelled)
    tidy = tidy if tidy[:1].isalnum() else f"x{tidy}"
    if len(tidy) > 96:
        rest = hashlib.blake2b(composed.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        tidy = f"{tidy[:83]}-{rest}"
    return check_id(tidy)


def refuse_collisions(ids: Iterable[tuple[str, str]]) -> None:
    """`ConfigError` where two different names have ids that are equal apart from case.

    Ids become file names, also on disks that ignore case.
    """
    seen: dict[str, str] = {}
    for face_id, name in ids:
        other = seen.setdefault(face_id.casefold(), name)
        if other != name:
            raise ConfigError(f"{other!r} and {name!r} would both be {face_id!r}; rename or remove one")
