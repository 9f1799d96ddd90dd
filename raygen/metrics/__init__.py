"""The mathematics of the metrics, and the registry that describes each of them."""
