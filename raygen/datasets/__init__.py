"""Data sets that `raygen ingest` reads.

A new one is a module with a subclass of `DataSet`, and its line in `DATASETS`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from raygen.core.config import tagged_union
from raygen.datasets.base import DataSet, IngestWorker
from raygen.datasets.celeba_dialog import CelebADialog
from raygen.datasets.celebamask import CelebAMask
from raygen.datasets.ffhq import FFHQ
from raygen.datasets.folder import Folder
from raygen.datasets.jsonl import JSONLines
from raygen.datasets.procedural.dataset import ProceduralDataSet
from raygen.datasets.results import MethodResults

__all__ = [
    "DATASETS",
    "FFHQ",
    "AnyDataSet",
    "CelebADialog",
    "CelebAMask",
    "DataSet",
    "Folder",
    "IngestWorker",
    "JSONLines",
    "MethodResults",
    "ProceduralDataSet",
]


#: Data sets by the value of `data.kind`.
DATASETS: Final[Mapping[str, type[DataSet]]] = {
    "celebamask": CelebAMask,
    "celeba_dialog": CelebADialog,
    "ffhq": FFHQ,
    "folder": Folder,
    "jsonl": JSONLines,
    "procedural": ProceduralDataSet,
    "results": MethodResults,
}

if TYPE_CHECKING:
    AnyDataSet = DataSet
else:
    AnyDataSet = tagged_union(DATASETS)
