"""The errors of data, part of exedit's one tree of errors."""

from exedit.runtime.errors import DataError, Uncaptioned, Unusable, UserError

__all__ = ['DataError', 'Uncaptioned', 'Unusable', 'UserError']
