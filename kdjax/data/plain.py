"""Files as plain UTF-8 text on disk, and how a text is cut into fields."""

import contextlib
import gzip
import pathlib
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import polars as pl

from kdjax.data.errors import DataError

# PanicException derives from BaseException: a panic inside polars is still only a bad file.
FAILURES = (
  pl.exceptions.PolarsError,
  pl.exceptions.PanicException,
  OSError,
  ValueError,
  OverflowError,
)
_BLOCK = 1 << 24
_HEAD = 1 << 16


class Table(NamedTuple):
  """A text file of rows and fields.

  Attributes:
    path: the plain file to read.
    shown: what messages call it.
    separator: between fields, one character or `::`.
    names: of the columns in file order.
    header: whether the first line holds the names.
    quoted: whether `"` may enclose a field.
    integer_ids: whether users and items must be whole numbers.
  """

  path: pathlib.Path
  shown: str
  separator: str
  names: Sequence[str]
  header: bool
  quoted: bool
  integer_ids: bool


@contextlib.contextmanager
def plain(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A path to the same file uncompressed: itself, or a temporary file if it is gzip.

  Raises:
    DataError: if the file cannot be opened, or its gzip data is cut short or damaged.
  """
  try:
    with path.open("rb") as source:
      zipped = source.read(2) == b"\x1f\x8b"
  except OSError as error:
    raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
  if not zipped:
    yield path
    return
  with tempfile.TemporaryDirectory(prefix="kdjax-") as folder:
    target = pathlib.Path(folder) / path.stem
    lines = 0
    try:
      # In blocks, so that memory never holds the text.
      with gzip.open(path) as source, target.open("wb") as sink:
        while block := source.read(_BLOCK):
          lines += block.count(b"\n")
          sink.write(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise DataError(
        f"{path}, line {lines + 1} or later: the gzip data is truncated or damaged ({error});"
        " fetch the file again"
      ) from error
    yield target


def read_head(path: pathlib.Path, shown: str) -> list[str]:
  """The first lines of a text file, without byte order mark and line ends.

  Raises:
    DataError: if the file is empty, UTF-16, or binary.
  """
  with path.open("rb") as source:
    raw = source.read(_HEAD)
  if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
    raise DataError(f"{shown}, line 1: UTF-16 text; save the file as UTF-8")
  lines = raw.decode("utf-8-sig", errors="replace").split("\n")
  if len(raw) == _HEAD and len(lines) > 1:
    lines.pop()  # Cut in the middle.
  lines = [line.removesuffix("\r") for line in lines if line.strip()]
  if not lines:
    raise DataError(f"{shown}: the file is empty; check that it was written completely")
  if "\0" in lines[0]:
    raise DataError(f"{shown}, line 1: binary data where text was expected; check the format")
  return lines


def text_repairs(path: pathlib.Path) -> dict[str, int]:
  """Counts what reading will mend silently: a byte order mark and CRLF line ends."""
  repairs: dict[str, int] = {}
  with path.open("rb") as source:
    block = source.read(_BLOCK)
    if block.startswith(b"\xef\xbb\xbf"):
      repairs["byte order marks removed"] = 1
    if b"\r\n" in block:
      count = 0
      while block:
        count += block.count(b"\r\n")
        cut = block.endswith(b"\r")
        block = source.read(_BLOCK)
        count += cut and block.startswith(b"\n")
      repairs["CRLF line ends read as LF"] = count
  return repairs
