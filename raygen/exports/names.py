"""Which names the rows of an exported data set get.

Knows identities, variants and ids. Knows no format and no picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raygen.names import safe_name

__all__ = ["Naming"]


@dataclass(frozen=True)
class Naming:
    """How rows are called. `people`: a folder an identity; `by_variant`: numbers in it instead of row ids.

    `dotless` replaces dots: readers of tar shards take what follows the first dot for the kind of a member.
    """

    key: str
    people: bool = False
    by_variant: bool = False
    dotless: bool = False

    def stem(self, row: Mapping[str, Any]) -> str:
        """Path of a row without its ending; `InputError` (`bad_id`) where an id is no safe name."""
        name = safe_name(row[self.key])
        if self.dotless:
            name = name.replace(".", "_")
        if not self.people or row["identity_id"] is None:
            return name
        person = safe_name(row["identity_id"])
        return f"{person}/{row['variant']:03d}" if self.by_variant else f"{person}/{name}"
