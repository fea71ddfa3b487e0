"""What an answer is due to: pure functions of a model and its inputs, which leave both as they were."""
