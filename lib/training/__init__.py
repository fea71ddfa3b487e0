"""Training: one loop for every task, its optimizers and objectives, and the run around it."""
