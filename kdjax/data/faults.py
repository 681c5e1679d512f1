"""The slow second pass over a file that could not be read: which line, what, and the mend."""

import csv
import itertools
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kdjax.data.errors import DataError
from kdjax.data.plain import Table

_NUMBERS = ("timestamp", "rating", "label")
ODD_LABEL = (
  "a label is neither 0 nor 1; mend it, or read the column as rating and set min_label_rating"
)


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
    if role == "label" and float(value) not in (0, 1):
      return f"{value[:40]}: {ODD_LABEL}"
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


def explain_lines(path: pathlib.Path, shown: str, cause: BaseException | None) -> DataError:
  """The first line that is not UTF-8 or, without a cause, whose ids are not whole numbers."""
  with path.open("rb") as source:
    for number, raw in enumerate(source, start=1):
      place = f"{shown}, line {number}"
      try:
        line = raw.decode("utf-8-sig")
      except UnicodeDecodeError:
        return DataError(f"{place}: not UTF-8 text; save the file as UTF-8")
      odd = [token for token in re.split(r"[\s,]+", line) if not re.fullmatch(r"[+-]?\d*", token)]
      if odd and cause is None:
        return DataError(
          f"{place}: {odd[0][:40]!r} is not a whole number as the ids before; mend the line"
        )
  said = str(cause).split("\n")[0] if cause else "unknown reason"
  return DataError(f"{shown}: cannot be read ({said}); check the format")


def explain_json(
  path: pathlib.Path, shown: str, roles: Mapping[str, str], cause: BaseException | None
) -> DataError:
  """The first line that is no JSON object, or lacks a value that a role needs."""
  with path.open("rb") as source:
    for number, line in enumerate(source, start=1):
      place = f"{shown}, line {number}"
      try:
        record = json.loads(line) if line.strip() else None
      except (ValueError, RecursionError) as error:
        return DataError(f"{place}: not JSON ({error}); mend or remove the line")
      if record is None:
        continue
      if not isinstance(record, dict):
        return DataError(f"{place}: not a JSON object; mend or remove the line")
      for role, name in roles.items():
        value = record.get(name)
        if value is None or (isinstance(value, str) and not value):
          return DataError(f"{place}: no {role} (field {name!r}); fill it in or remove the line")
        if role not in ("user", "item"):
          try:
            finite = math.isfinite(float(value))
          except (TypeError, ValueError, OverflowError):
            finite = False
          if not finite:
            return DataError(f"{place}: {role} {value!r} is not a number; mend the line")
          if role == "label" and float(value) not in (0, 1):
            return DataError(f"{place}: {value}: {ODD_LABEL}")
  said = str(cause).split("\n")[0] if cause else "unknown reason"
  return DataError(f"{shown}: cannot be read ({said}); check the format")
