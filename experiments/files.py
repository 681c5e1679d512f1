"""Files that are there whole or not at all, however a run ends."""

import contextlib
import pathlib
from collections.abc import Iterator

import polars as pl


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Where to write what becomes `path` when the block ends without an error.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "x.txt"
    >>> with whole(path) as part:
    ...   size = part.write_text("all")
    >>> path.read_text(), part.exists()
    ('all', False)
  """
  part = path.with_name(f"{path.name}.partial")
  yield part
  part.replace(path)


def write_table(path: pathlib.Path, table: pl.DataFrame) -> None:
  """Writes a table as Parquet."""
  with whole(path) as part:
    table.write_parquet(part)
