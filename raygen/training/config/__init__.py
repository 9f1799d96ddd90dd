"""Settings of trainings: nothing here imports torch."""
