"""Influence of the experts of a collaboration in every step: statistics for SCORES, maps for INFLUENCE."""

from collections.abc import Callable, Sequence
from typing import Final

import pyarrow as pa
import torch
from torch import Tensor

from raygen.core.pixels import to_uint8
from raygen.metrics.score_rows import score_table
from raygen.models.collaborative import INFLUENCE as PREFIX
from raygen.store.images import Codec, encode_image, encode_mask, picture
from raygen.store.schemas import INFLUENCE

__all__ = ["X0", "InfluenceRecorder"]


#: Name of the estimate of z in a record, and of its picture in a row of INFLUENCE.
X0: Final = "x0"


class InfluenceRecorder:
    """Reads `record` after every step of one batch; nothing is copied to the host before the rows are asked for.

    It does no work for models that record no influence, or where no maps are kept.
    """

    def __init__(self, rows: int, keep: int) -> None:
        """`rows`: the first slots of a batch, which are recorded; `keep`: how many evenly spaced steps keep maps."""
        self.rows, self.keep = rows, keep
        self.record: dict[str, Tensor] = {}
        self.timesteps: list[int] = []
        self._means: dict[str, list[Tensor]] = {}
        self._spreads: dict[str, list[Tensor]] = {}
        self._maps: dict[int, dict[str, Tensor]] = {}
        self._taken = 0

    def begin(self, timesteps: Sequence[int], decode: Callable[[Tensor], Tensor]) -> None:
        """`timesteps`: t of each step to come; `decode`: an estimate of z -> pixels."""
        self.timesteps, self._decode = list(timesteps), decode
        last = len(timesteps) - 1
        self._chosen = {round(i * last / max(self.keep - 1, 1)) for i in range(self.keep)}

    def step(self) -> None:
        """Read and clear the record of the step that has just ended."""
        shares = {k[len(PREFIX) :]: v[: self.rows].float() for k, v in self.record.items() if k.startswith(PREFIX)}
        for name, share in shares.items():
            self._means.setdefault(name, []).append(share.flatten(1).mean(dim=1))
            self._spreads.setdefault(name, []).append(share.flatten(1).std(dim=1, correction=0))
        if self._taken in self._chosen:  # by step: a sampler may give two of them one t
            maps = {name: (share[:, 0] * 255).round().to(torch.uint8) for name, share in shares.items()}
            maps[X0] = to_uint8(self._decode(self.record[X0][: self.rows]))
            self._maps[self._taken] = maps
        self._taken += 1
        self.record.clear()

    def part(self, rows: slice) -> "InfluenceRecorder":
        """What was recorded of some slots that follow each other."""
        own = InfluenceRecorder(rows.stop - rows.start, self.keep)
        own.timesteps = self.timesteps
        own._means, own._spreads = (
            {name: [values[rows] for values in steps] for name, steps in of.items()}
            for of in (self._means, self._spreads)
        )
        own._maps = {step: {name: m[rows] for name, m in maps.items()} for step, maps in self._maps.items()}
        return own

    def scores(self, ids: Sequence[str], good: Sequence[int], *, run_id: str, attempt: int) -> pa.Table:
        """SCORES rows `influence:<expert>` of the good rows: the mean over pixels at each step, then the spreads."""
        rows = []
        for name in self._means:
            statistics = torch.stack([*self._means[name], *self._spreads[name]], dim=1).cpu()  # [rows, 2 x steps]
            rows += [(ids[i], f"influence:{name}", statistics[i].tolist()) for i in good]
        return score_table(rows, run_id, attempt)

    def maps(self, ids: Sequence[str], good: Sequence[int], codec: Codec) -> pa.Table:
        """INFLUENCE rows of the good rows: a map of 8 bits a pixel of the latent, 255 being all, or the picture `x0`.

        `step` counts from 0, the first one out of noise; `timestep` is its t.
        """
        arrays = {step: {name: m.cpu().numpy() for name, m in maps.items()} for step, maps in self._maps.items()}
        rows = []
        for i in good:
            for step, maps in arrays.items():
                for name, values in maps.items():
                    file = encode_image(values[i], codec) if name == X0 else encode_mask(values[i])
                    at = {"sample_id": ids[i], "step": step, "timestep": self.timesteps[step]}
                    rows.append({**at, "name": name, "map": picture(file)})
        return pa.Table.from_pylist(rows, INFLUENCE)
