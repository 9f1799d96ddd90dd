"""The version of raygen; pyproject.toml reads it from here."""

__all__ = ["__version__"]

__version__ = "0.1.0"  # without an annotation: the build backend looks for this form
