"""Exceptions and the exit code of each."""

from collections.abc import Mapping
from typing import Any, ClassVar

from raygen.core.location import redact

__all__ = [
    "ConfigError",
    "InfrastructureError",
    "InputError",
    "IntegrityError",
    "RaygenError",
    "StorageError",
    "TooManyBadRows",
    "from_record",
    "to_record",
]


class RaygenError(Exception):
    """Base of every error raygen raises on purpose; `exit_code` is what the command returns.

    The message is stored and shown in many places, so URLs in it lose their users, passwords and queries here.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact(value) if isinstance(value, str) else value for value in args))


class ConfigError(RaygenError):
    """The job cannot run as written: unknown key, value out of range, missing file or bucket."""

    exit_code = 2


class InputError(RaygenError):
    """Input data is invalid or damaged; `reason` is a short stable word such as `truncated`."""

    exit_code = 2

    def __init__(self, message: str, *, reason: str = "invalid") -> None:
        super().__init__(message)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}: {super().__str__()}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _input_error, (super().__str__(), self.reason)


def _input_error(message: str, reason: str) -> InputError:
    return InputError(message, reason=reason)


class TooManyBadRows(RaygenError):
    """More rows failed than `max_error_fraction` allows; committed rows are kept, `_SUCCESS` is not written."""

    exit_code = 3


class InfrastructureError(RaygenError):
    """Storage or a worker failed, or a time limit passed; the same command may work later."""

    exit_code = 4


class StorageError(InfrastructureError):
    """A disk is full or read-only, or an account has no space left: another attempt would fail the same way."""


class IntegrityError(RaygenError):
    """Stored bytes differ from their commit, or two attempts of a shard differ."""

    exit_code = 5


def to_record(error: RaygenError) -> dict[str, str]:
    """Class, message and reason of an error, to be sent to another process or written as JSON."""
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)
    # str() of an InputError also has its reason.
    return {"kind": kind, "message": Exception.__str__(error), "reason": getattr(error, "reason", "")}


def from_record(record: Mapping[str, str]) -> RaygenError:
    """The error of `to_record`, of the same class."""
    if record["kind"] == "InputError":
        return InputError(record["message"], reason=record["reason"])
    known = (ConfigError, TooManyBadRows, StorageError, InfrastructureError, IntegrityError)
    kinds = {kind.__name__: kind for kind in known}
    return kinds.get(record["kind"], RaygenError)(record["message"])
