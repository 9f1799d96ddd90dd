"""Settings of a selection beside its gates."""

from pydantic import Field

from raygen.core.config import Config

__all__ = ["FailureAnalysisConfig"]


class FailureAnalysisConfig(Config):
    """Which masks are rare."""

    rare: float = Field(0.1, gt=0, lt=1, description="fraction of the masks that are called rare")
