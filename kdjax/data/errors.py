"""The one error of the data layer."""


class DataError(ValueError):
  """Data that cannot be used as it is; the message names the place and the mend.

  Example:
    >>> raise DataError("ratings.csv, line 3: empty user; remove the line or fill it in")
    Traceback (most recent call last):
      ...
    kdjax.data.errors.DataError: ratings.csv, line 3: empty user; remove the line or fill it in
  """
