"""Sampling with scores: the worker of a generate run, and those of several runs that share one model."""

from collections.abc import Sequence

from raygen.evaluation.config import ScoreConfig
from raygen.evaluation.scoring import Scorer
from raygen.sampling.config import SampleConfig, shares_model
from raygen.sampling.worker import SampleWorker
from raygen.store.lookup import StoredRows

__all__ = ["SharedSampler", "sample_worker"]


def sample_worker(
    config: SampleConfig, score: ScoreConfig | None, threads: int, references: str | None = None
) -> SampleWorker:
    """The worker of a generate run; `references` is the folder of the faces that styles are taken from.

    With `score`, pictures are measured before they are encoded.
    """
    faces = None if references is None else StoredRows(references, ("image", "mask"))
    observe = None if score is None else Scorer(score, run_id=config.run_id, attempt=config.attempt, sources=faces)
    return SampleWorker(config, observe=observe, threads=threads, references=faces)


class SharedSampler:
    """The workers of several generate runs in one actor; runs with the same model share the loaded one.

    Holds at most one model at a time.
    """

    def __init__(
        self, configs: Sequence[SampleConfig], score: ScoreConfig | None, threads: int, references: str | None = None
    ) -> None:
        self.configs, self.score, self.threads, self.references = tuple(configs), score, threads, references
        self._last: SampleWorker | None = None

    def for_run(self, run: int) -> SampleWorker:
        """The worker of `configs[run]`."""
        config, last = self.configs[run], self._last
        if last is None or not shares_model(config, last.config):
            last = self._last = None  # frees the other model before this one is loaded
            last = sample_worker(config, self.score, self.threads, self.references)
        elif config != last.config:
            last = last.another(config)
            if isinstance(last.observe, Scorer):
                last.observe = last.observe.named(config.run_id, config.attempt)
        self._last = last
        return last
