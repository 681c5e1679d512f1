"""The one error of the data layer."""

import contextlib
from collections.abc import Iterator


class DataError(ValueError):
  """Data that cannot be used as it is; the message names the place and the mend.

  Example:
    >>> raise DataError("ratings.csv, line 3: empty user; remove the line or fill it in")
    Traceback (most recent call last):
      ...
    kdjax.data.errors.DataError: ratings.csv, line 3: empty user; remove the line or fill it in
  """


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
  """Puts the name of the log before what is wrong with it."""
  try:
    yield
  except DataError as error:
    raise DataError(f"{source}: {error}") from error
