"""Turns shards of records into batches of numpy arrays. This package never imports jax."""
