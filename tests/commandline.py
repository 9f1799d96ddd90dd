"""The command line in the process of a test."""

import sys
from typing import Any

import pytest

from raygen import cli


def main(capfd: Any, *words: str) -> tuple[int, str]:
    """Exit code and all output of a command line, run in this process."""
    before = sys.argv
    sys.argv = ["raygen", *words]
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv = before
    captured = capfd.readouterr()
    return int(end.value.code or 0), captured.out + captured.err
