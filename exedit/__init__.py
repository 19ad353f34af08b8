"""exedit: exemplar-based image editing in JAX and Flax NNX (Paint by Example, Custom-Edit)."""

__version__ = '0.1.0'
