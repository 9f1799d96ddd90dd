"""Files of weights that other programs wrote: opened without running anything in them, read a tensor at a time."""
