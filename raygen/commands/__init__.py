"""One module a command: its job as it is written, and how that becomes a plan and a worker."""
