"""exedit: exemplar-based image editing in JAX and Flax NNX (Paint by Example, Custom-Edit)."""

from exedit.runtime import signals

__version__ = '0.1.0'

signals.end_at_once()  # before all else that a door imports
