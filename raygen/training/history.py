"""Reads `history.jsonl`, the record of a training."""

import json
from typing import Any

__all__ = ["read_history"]


def read_history(text: str) -> list[dict[str, Any]]:
    """The whole lines of a history, oldest first; one that a kill cut off is left out."""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]
