"""Shared machinery of the scripts: train small networks, restore them, look inside them."""
