"""The errors of data, part of exedit's one tree of errors."""

from exedit.runtime.errors import DataError, Unusable

__all__ = ['DataError', 'Unusable']
