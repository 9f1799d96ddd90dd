"""First stages, condition encoders, noise schedules and denoisers. No rows, no losses, no Ray."""
