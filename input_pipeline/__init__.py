"""Turns shards of records into batches of numpy arrays. It imports no jax."""

import exedit  # noqa: F401  it arranges that Ctrl-C is one line while the rest is imported
