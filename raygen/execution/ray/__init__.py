"""Everything that imports Ray: connecting, mapping shards over actors, training on several workers."""

import os

# Ray connects by itself, with its own settings, where it is used without a connection: after an interrupt a thread of
# Ray Data would start another Ray. Read once, when Ray is imported.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
