"""Files that were given as weights and are none: git-lfs pointers, web pages, archives, files that were cut off."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from raygen.core.errors import InputError

__all__ = ["START", "check_start", "why_not_weights"]


#: How many bytes from the start of a file say what it is.
START = 512
GIT_LFS = b"version https://git-lfs.github.com/spec/"
#: What begins with these bytes, and what to do.
KINDS: Final[Mapping[bytes, str]] = {
    **dict.fromkeys(
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"),
        "a compressed file or archive: unpack it, and name the file of weights in it",
    ),
    **dict.fromkeys(
        (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8"),
        "a picture: name the file of weights",
    ),
    b"\x89HDF\r\n": "an HDF5 file, as Keras writes it: nothing here reads its names of tensors",
    b"GGUF": "a GGUF file of quantised weights: name the one that it was made from",
    b"\x93NUMPY": "one array of numpy: weights need the names of their tensors",
}
#: A graph of ONNX begins with its version, followed by the name of the program that wrote it.
ONNX: Final = re.compile(rb"\x08[\x01-\x20]\x12", re.DOTALL)
#: The first line of a text. Pickles of protocol 0, which are text too, begin with a line of one word.
SENTENCE: Final = re.compile(rb"[\x20-\x7e]*[A-Za-z0-9,.:;#]{2} [\x20-\x7e]*")


def why_not_weights(start: bytes) -> str | None:
    """What a file is that begins with these bytes (`START` of them), and what to do; None where it may be weights."""
    if not start:
        return "an empty file: its download or copy did not begin; fetch it again"
    if start.startswith(GIT_LFS):
        size = re.search(rb"^size (\d+)", start, re.MULTILINE)
        stored = f" of {int(size[1]):,} bytes" if size else ""
        return f"a git-lfs pointer to a file{stored}, not the file: run `git lfs pull` in its repository"
    if start[5:9] == b"\0\0\0{":  # safetensors, whose header may have a length that looks like any of these
        return None
    if (kind := next((text for magic, text in KINDS.items() if start.startswith(magic)), None)) is not None:
        return kind
    if start[257:262] == b"ustar":
        return "an archive (tar): unpack it, and name the file of weights in it"
    if ONNX.match(start):
        return "a graph of ONNX: name the file of weights that it was made from"
    if b"\0" in start[:16]:  # no text: safetensors begins with the length of its header, which may look like a brace
        return None
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):  # also the XML with which object stores refuse a download
        return (
            "a web page, which a download leaves that first asks for a confirmation or a login; "
            "open its address in a browser, and save what that page offers"
        )
    if text.startswith((b"{", b"[")):
        return f"a JSON document ({_keys(text)}): name the file of weights beside it"
    if line := SENTENCE.match(text.partition(b"\n")[0][:80]):
        said = line[0].decode().strip()[:60]
        return f"a text ({said!r}), perhaps a server's answer in place of the file: fetch it again"
    return None


def check_start(path: Path) -> None:
    """`InputError` (`weights`) where the file is something else than weights; see `why_not_weights`."""
    with path.open("rb") as file:
        reason = why_not_weights(file.read(START))
    if reason is not None:
        raise InputError(f"{path}: {reason}", reason="weights")


def _keys(text: bytes) -> str:
    """The first keys of a document, of which only the start is there."""
    keys = [json.loads(key) for key in re.findall(rb'"[\w. -]{1,40}"(?=\s*:)', text)[:3]]
    return f"keys {', '.join(keys)}" if keys else "without keys"
