"""Published checkpoints of the systems that raygen implements -> our folders, exactly."""
