"""Where faces come from: one module a source, joined in a closed union on `kind`.

`raygen.datasets.base` has the contract; a new source is one module and one name in `AnyDataSet`.
"""

from typing import Annotated

from pydantic import Field

from raygen.datasets.base import DataSet, IngestWorker
from raygen.datasets.celeba_dialog import CelebADialog
from raygen.datasets.celebamask import CelebAMask
from raygen.datasets.ffhq import FFHQ
from raygen.datasets.folder import Folder
from raygen.datasets.jsonl import JSONLines
from raygen.datasets.procedural.dataset import ProceduralDataSet

__all__ = [
    "FFHQ",
    "AnyDataSet",
    "CelebADialog",
    "CelebAMask",
    "DataSet",
    "Folder",
    "IngestWorker",
    "JSONLines",
    "ProceduralDataSet",
]


#: Every data set that a job can name, told apart by `kind`.
AnyDataSet = Annotated[
    CelebAMask | CelebADialog | FFHQ | Folder | JSONLines | ProceduralDataSet, Field(discriminator="kind")
]
