"""Benchmarks in the layout of COCOEE: read, validate, build, and results without training."""
