"""Pytrees, meshes, optimizer, checkpoints and the log; knows no network and no diffusion."""
