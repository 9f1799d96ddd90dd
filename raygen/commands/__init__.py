"""One module a verb: the job as it is written, and how it becomes a plan and a worker. They do not know each other."""
