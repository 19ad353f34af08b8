"""Bytes in, batches of numpy out: shards, masks, crops, augmentation, loader; never imports jax."""
