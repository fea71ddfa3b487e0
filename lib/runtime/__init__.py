"""What every program needs and no task knows: errors, files, the log, checkpoints, ranks, signals, memory."""
