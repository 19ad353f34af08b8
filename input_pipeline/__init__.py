"""Turns shards of records into batches of numpy arrays. It imports no jax."""

from exedit.runtime import start  # noqa: F401  Ctrl-C is one line while the rest is imported
