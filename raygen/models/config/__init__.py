"""Settings of models, and what follows from them alone: nothing here imports torch."""
