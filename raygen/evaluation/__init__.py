"""SAMPLES to SCORES to METRICS: scoring, aggregation, reference sets, slices."""
