"""What a section of the report page is."""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Section"]


class Section(NamedTuple):
    """One section of the page: anchor, heading, Jinja template in `report/templates`, and the template's variables."""

    anchor: str
    heading: str
    template: str
    variables: Mapping[str, object]
