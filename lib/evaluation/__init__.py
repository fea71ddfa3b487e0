"""Evaluation of trained networks: predictions, metrics, features of layers and their embeddings."""
