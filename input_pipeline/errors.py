"""The errors that data raises."""


class DataError(ValueError):
  """Data that a person can put right: one line with what was wrong, both values and the remedy."""


class Unusable(DataError):
  """A sound record with nothing to learn from, such as no box of a fitting size."""
