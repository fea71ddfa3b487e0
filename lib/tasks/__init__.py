"""What the scripts do, step by step: where data, networks, training, explanations and pictures meet."""
