"""Everything that imports Ray: connecting, mapping shards over actors, training on several workers."""
