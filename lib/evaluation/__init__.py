"""What a trained network says and what its layers hold: answers, metrics, features, embeddings."""
