"""Frozen networks that look at pictures: face parsers and feature extractors."""
