"""Committed pictures in the formats that trainers read, each with a data card.

Knows the closed union of formats. `names`, `source`, `pictures`, `rows` and `worker` are what they share; a format
turns the finished rows of a shard into files or pieces, and puts the pieces together at the end.
"""

from typing import Annotated

from pydantic import Field

from raygen.exports.csv import CsvExport
from raygen.exports.folder import FolderExport
from raygen.exports.huggingface import HuggingFaceExport
from raygen.exports.recordio import RecordIOExport
from raygen.exports.webdataset import WebDatasetExport

__all__ = ["AnyExport", "CsvExport", "FolderExport", "HuggingFaceExport", "RecordIOExport", "WebDatasetExport"]


#: Every format.
AnyExport = Annotated[
    FolderExport | RecordIOExport | WebDatasetExport | HuggingFaceExport | CsvExport, Field(discriminator="kind")
]
