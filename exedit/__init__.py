"""exedit: exemplar-based image editing in JAX and Flax NNX (Paint by Example, Custom-Edit)."""

from exedit.runtime import start

__version__ = '0.1.0'

start.end_at_once()  # before all else that a door imports
