"""Files as plain UTF-8 text on disk, and the slow second pass that finds the line at fault."""

import contextlib
import csv
import gzip
import itertools
import math
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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
_NUMBERS = ("timestamp", "rating", "label")


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


def explain(table: Table, roles: Mapping[str, str], cause: BaseException | None) -> DataError:
  """Goes through the file line by line and says what is wrong with the first bad one.

  Args:
    table: the file.
    roles: column name by role.
    cause: what the fast reader said, for the case that no line is at fault.
  """
  places = {role: table.names.index(name) for role, name in roles.items()}
  for number, fields in _rows(table):
    fault = _fault(table, places, fields)
    if fault:
      return DataError(f"{table.shown}, line {number}: {fault}")
  said = str(cause).strip().split("\n")[0] if cause else "unknown reason"
  return DataError(f"{table.shown}: cannot be read ({said}); check separator and format")


def _rows(table: Table) -> Iterator[tuple[int, list[str] | str]]:
  """Line number (from 1) and fields of every row that is not blank; a string is a complaint."""
  with table.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as source:
    if table.quoted:
      reader = csv.reader(source, delimiter=table.separator)
      numbered: Iterator[tuple[int, list[str]]] = ((reader.line_num, row) for row in reader)
    else:
      numbered = (
        (n, line.rstrip("\r\n").split(table.separator)) for n, line in enumerate(source, start=1)
      )
    try:
      for number, fields in itertools.islice(numbered, int(table.header), None):
        if any(fields):
          yield number, fields
    except csv.Error as error:
      yield reader.line_num, f"{error}; check the quotes, or remove the line"


def _fault(table: Table, places: Mapping[str, int], fields: list[str] | str) -> str | None:
  if isinstance(fields, str):
    return fields
  try:
    "".join(fields).encode()
  except UnicodeEncodeError:
    return "not UTF-8 text; save the file as UTF-8, or remove the line"
  expected = len(table.names)
  if len(fields) != expected:
    return (
      f"{len(fields)} field(s) where {expected} were expected ({', '.join(table.names)}), taking"
      f" {table.separator!r} as separator; mend the line or set separator"
    )
  for role, place in places.items():
    value = fields[place].strip()
    if not value:
      return f"empty {role} (column {table.names[place]!r}); fill it in or remove the line"
    if role in _NUMBERS and not _is_number(float, value):
      return f"{role} {value[:40]!r} is not a number; mend or remove the line"
    if role not in _NUMBERS and table.integer_ids and not _is_number(int, value):
      return f"{role} {value[:40]!r} is not a whole number; mend the line or set format='csv'"
  return None


def _is_number(parse: Callable[[str], Any], value: str) -> bool:
  try:
    return math.isfinite(parse(value))
  except ValueError:
    return False
  except OverflowError:  # A whole number beyond any float is still a number.
    return True
