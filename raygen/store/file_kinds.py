"""What a file is that was given as weights and is none: a pointer of git-lfs, a web page, a document, a stump."""

import json
import re
from pathlib import Path

from raygen.core.errors import InputError

__all__ = ["START", "check_start", "why_not_weights"]


#: How many bytes from the start of a file say what it is.
START = 512
GIT_LFS = b"version https://git-lfs.github.com/spec/"
#: Starts of web pages and of the XML with which object stores refuse a download.
PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")


def why_not_weights(start: bytes) -> str | None:
    """What a file is that begins with these bytes (`START` of them), and what to do; None where it may be weights."""
    if not start:
        return "an empty file: its download or copy did not begin; fetch it again"
    if start.startswith(GIT_LFS):
        size = re.search(rb"^size (\d+)", start, re.MULTILINE)
        stored = f" of {int(size[1]):,} bytes" if size else ""
        return f"a git-lfs pointer to a file{stored}, not the file: run `git lfs pull` in its repository"
    if b"\0" in start[:16]:  # no text: safetensors begins with the length of its header, which may look like a brace
        return None
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:16].lower().startswith(PAGES):
        return (
            "a web page, which a download leaves that first asks for a confirmation or a login; "
            "open its address in a browser, and save what that page offers"
        )
    if text.startswith((b"{", b"[")):
        return f"a JSON document ({_keys(text)}): name the file of weights beside it"
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
