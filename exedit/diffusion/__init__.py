"""Diffusion without networks: the noise schedule, samplers and guidance, as functions of arrays."""
