"""Data sets, in memory or as files, their preprocessing, and the batches drawn from them."""
