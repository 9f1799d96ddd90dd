"""What the experts of a collaboration counted for, step by step: statistics for SCORES, maps for INFLUENCE.

Knows how the record of a denoising loop becomes rows. Knows neither models nor the loop.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from raygen.core.pixels import to_uint8
from raygen.models.collaborative import INFLUENCE as PREFIX
from raygen.store.images import Codec, encode_image, encode_mask, picture
from raygen.store.schemas import INFLUENCE, SCORES

__all__ = ["X0", "InfluenceRecorder"]


#: Name of the estimate of z in a record, and of its picture in a row of INFLUENCE.
X0: Final = "x0"


class InfluenceRecorder:
    """Reads `record` after every step of one batch; nothing is copied to the host before the rows are asked for.

    Costs nothing for models that record no influence, and where no maps are kept.
    """

    def __init__(self, rows: int, keep: int) -> None:
        """Of a batch the first `rows` slots count; `keep` steps at equal distances keep their maps."""
        self.rows, self.keep = rows, keep
        self.record: dict[str, Tensor] = {}
        self.timesteps: list[int] = []
        self._means: dict[str, list[Tensor]] = {}
        self._spreads: dict[str, list[Tensor]] = {}
        self._kept: dict[int, dict[str, Tensor]] = {}
        self._taken = 0

    def begin(self, timesteps: Sequence[int], decode: Callable[[Tensor], Tensor]) -> None:
        """The t of each step to come, and how an estimate of z becomes pixels."""
        self.timesteps, self._decode = list(timesteps), decode
        last = len(timesteps) - 1
        self._chosen = {round(i * last / max(self.keep - 1, 1)) for i in range(self.keep)}

    def step(self) -> None:
        """Take in the step that has just been recorded."""
        shares = {k[len(PREFIX) :]: v[: self.rows].float() for k, v in self.record.items() if k.startswith(PREFIX)}
        for name, share in shares.items():
            self._means.setdefault(name, []).append(share.flatten(1).mean(dim=1))
            self._spreads.setdefault(name, []).append(share.flatten(1).std(dim=1, correction=0))
        if self._taken in self._chosen:
            kept = {name: (share[:, 0] * 255).round().to(torch.uint8) for name, share in shares.items()}
            kept[X0] = to_uint8(self._decode(self.record[X0][: self.rows]))
            self._kept[self.timesteps[self._taken]] = kept
        self._taken += 1
        self.record.clear()

    def scores(self, ids: Sequence[str], good: Sequence[int], *, run_id: str, attempt: int) -> pa.Table:
        """SCORES rows `influence:<expert>` of the good rows: the mean over pixels at each step, then the spreads."""
        found = []
        for name in self._means:
            both = torch.stack([*self._means[name], *self._spreads[name]], dim=1).cpu()  # [rows, 2 x steps]
            found += [(ids[i], f"influence:{name}", both[i].tolist()) for i in good]
        columns = {
            "sample_id": [row[0] for row in found],
            "attempt": [attempt] * len(found),
            "metric": [row[1] for row in found],
            "run_id": [run_id] * len(found),
            "vector": [row[2] for row in found],
        }
        return pa.table({f.name: pa.array(columns[f.name], f.type) for f in SCORES}, schema=SCORES)

    def maps(self, ids: Sequence[str], good: Sequence[int], codec: Codec) -> pa.Table:
        """INFLUENCE rows of the good rows: maps of 8 bits a pixel of the latent, 255 being all, and the picture `x0`.

        `step` is t.
        """
        rows = []
        for t, kept in self._kept.items():
            hosts = {name: values.cpu().numpy() for name, values in kept.items()}
            for i in good:
                maps = [(n, picture(_encoded(n, values[i], codec))) for n, values in hosts.items()]
                rows.append({"sample_id": ids[i], "step": t, "maps": maps})
        return pa.Table.from_pylist(rows, INFLUENCE)


def _encoded(name: str, values: npt.NDArray[np.uint8], codec: Codec) -> bytes:
    return encode_image(values, codec) if name == X0 else encode_mask(values)
