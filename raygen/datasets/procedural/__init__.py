"""The procedural data set: drawn faces with exact masks and attributes."""
