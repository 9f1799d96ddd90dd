"""Committed pictures in the formats that trainers read, each with a data card.

A new format is a module with a subclass of `Export`, and its line in `EXPORTS`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from raygen.core.config import tagged_union
from raygen.exports.base import Export
from raygen.exports.csv import CsvExport
from raygen.exports.folder import FolderExport
from raygen.exports.huggingface import HuggingFaceExport
from raygen.exports.mds import MDSExport
from raygen.exports.recordio import RecordIOExport
from raygen.exports.webdataset import WebDatasetExport

__all__ = [
    "EXPORTS",
    "AnyExport",
    "CsvExport",
    "Export",
    "FolderExport",
    "HuggingFaceExport",
    "MDSExport",
    "RecordIOExport",
    "WebDatasetExport",
]


#: Formats by the value of `format.kind`.
EXPORTS: Final[Mapping[str, type[Export]]] = {
    "folder": FolderExport,
    "recordio": RecordIOExport,
    "webdataset": WebDatasetExport,
    "huggingface": HuggingFaceExport,
    "csv": CsvExport,
    "mds": MDSExport,
}

if TYPE_CHECKING:
    AnyExport = Export
else:
    AnyExport = tagged_union(EXPORTS)
