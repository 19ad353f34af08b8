"""Turns shards of records into batches of numpy arrays. It imports no jax."""
