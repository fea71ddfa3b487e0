"""Services for every program, whatever its task: errors, files, logs, checkpoints, ranks, signals, memory."""
