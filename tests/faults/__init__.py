"""The k-th operation of a command fails or kills it, for every k: what is there after the next command."""
