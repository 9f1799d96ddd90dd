"""Runs workers over shards, in a plain loop or on Ray."""
