"""Readers of event files, one a format; each returns columns named by role, in file order."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kdjax.data.errors import DataError
from kdjax.data.faults import ODD_LABEL, explain, explain_json, explain_lines
from kdjax.data.plain import FAILURES, Table, read_head, text_repairs

ROLES = ("user", "item", "timestamp", "rating", "label")
# Names that common logs use, tried in this order, in any case.
_KNOWN = {
  "user": "user user_id userId uid reviewerID visitorid session_id",
  "item": "item item_id itemId iid movie_id parent_asin asin product_id movieId",
  "timestamp": "timestamp time ts unixReviewTime datetime",
  "rating": "rating overall score stars user_rating",
  "label": "label click clicked",
}
Read = tuple[pl.DataFrame, dict[str, int]]  # Events, and repairs by name.


def find_roles(
  names: Sequence[str], flags: Mapping[str, str], shown: str, separator: str | None = None
) -> dict[str, str]:
  """Which column plays which role.

  Args:
    names: columns of the file.
    flags: column by role where the caller named one; the rest goes by well-known names.
    shown: what messages call the file.
    separator: between fields, for the hint when there is only one.

  Raises:
    DataError: if a named column, or user or item, is missing.

  Example:
    >>> find_roles(["userId", "movieId", "score"], {}, "x.csv")
    {'user': 'userId', 'item': 'movieId', 'rating': 'score'}
  """
  lower = {name.lower(): name for name in reversed(names)}
  roles = {}
  for role in ROLES:
    if flags.get(role):
      found = flags[role] if flags[role] in names else None
    else:
      known = (lower.get(name.lower()) for name in _KNOWN[role].split())
      found = next((name for name in known if name), None)
    if found:
      roles[role] = found
    elif flags.get(role) or role in ("user", "item"):
      wanted = (
        f"no column {flags[role]!r}" if flags.get(role) else f"no {role} column known by name"
      )
      others = [s for s in ",\t;|" if s != separator and s in names[0]] if len(names) == 1 else []
      mend = f"set separator={others[0]!r}" if others else f"set {role}_column to one of them"
      columns = ", ".join(names[:20])[:200]
      raise DataError(f"{shown}, line 1: {wanted}; the columns are {columns}; {mend}")
  taken = list(roles.values())
  if len(set(taken)) < len(taken):
    raise DataError(f"{shown}, line 1: one column is named for two roles: {roles}; name others")
  return roles


def read_table(table: Table, roles: Mapping[str, str]) -> Read:
  """Reads a delimited text file.

  Args:
    table: the file and how it is cut.
    roles: column name by role.

  Raises:
    DataError: names the first line that does not fit.
  """
  whole = dict.fromkeys(("user", "item", "timestamp"), pl.Int64())
  loose = {"user": pl.String(), "item": pl.String(), "timestamp": pl.Float64()}
  cause: BaseException | None = None
  for types in (whole, loose):
    try:
      events = _scan(table, roles, types).collect(engine="streaming")
      break
    except FAILURES as error:
      cause = error
  else:
    raise explain(table, roles, cause)
  blank = pl.all_horizontal(pl.all().is_null())
  repairs = text_repairs(table.path)
  if events["user"].null_count():
    kept = events.filter(~blank)
    if kept.height < events.height:
      repairs["blank lines skipped"] = events.height - kept.height
    events = kept
  if has_gaps(events) or has_odd_labels(events):
    raise explain(table, roles, cause)
  settled = _settle_ids(events, table.integer_ids, repairs)
  if settled is None:
    raise explain(table, roles, cause)
  return settled, repairs


def _scan(table: Table, roles: Mapping[str, str], types: Mapping[str, Any]) -> pl.LazyFrame:
  names = list(table.names)
  if table.separator == "::":  # polars cuts at one character: every second field is empty then.
    names = [name for n, column in enumerate(names) for name in (f" {n}", column)][1:]
  by_name = {column: types.get(role, pl.Float32()) for role, column in roles.items()}
  frame = pl.scan_csv(
    table.path,
    separator=table.separator[0],
    has_header=False,
    skip_lines=int(table.header),
    schema={name: by_name.get(name, pl.String()) for name in names},
    quote_char='"' if table.quoted else None,
    glob=False,
  )
  return frame.select(pl.col(column).alias(role) for role, column in roles.items())


def _settle_ids(events: pl.DataFrame, whole: bool, repairs: dict[str, int]) -> pl.DataFrame | None:
  """Text ids to whole numbers where all of a column are; None if `whole` and some are not."""
  for name in ("user", "item"):
    if events[name].dtype != pl.String:
      continue
    numbers = events[name].cast(pl.Int64, strict=False)
    others = numbers.null_count()
    if not others:
      events = events.with_columns(numbers)
    elif events[name].str.contains(r"^[+-]?\d+$").all():
      repairs[f"{name} ids beyond int64, all kept as text"] = others
    elif whole:
      return None
    elif others * 100 < events.height:  # So few that they may be typing errors.
      repairs[f"{name} ids that are no numbers, all kept as text"] = others
  return events


def read_sequences(path: pathlib.Path, shown: str) -> Read:
  """Reads `user item item ...` lines, fields separated by blanks, tabs or commas."""
  repairs = text_repairs(path)
  token = pl.col("line").str.strip_chars_start("\ufeff").str.extract_all(r"[^\s,]+")
  # Null instead of empty, so that explode keeps the row and it can be counted.
  item = pl.when(pl.col("item").list.len() > 0).then("item").alias("item")
  try:
    events = (
      pl.scan_lines(path, name="line", glob=False)
      .select(token.alias("ids"))
      .filter(pl.col("ids").list.len() > 0)
      .select(pl.col("ids").list.first().alias("user"), pl.col("ids").list.slice(1).alias("item"))
      .with_columns(item)
      .explode("item")
      .collect(engine="streaming")
    )
  except FAILURES as error:
    raise explain_lines(path, shown, error) from error
  empty = events["item"].null_count()
  if empty:
    repairs["users without items skipped"] = empty
    events = events.filter(pl.col("item").is_not_null())
  if not events.height:
    raise DataError(f"{shown}, line 1: no line holds a user and an item; check the format")
  # A log that begins with numbers holds numbers.
  whole = all(re.fullmatch(r"[+-]?\d+", value) for value in events.row(0))
  settled = _settle_ids(events, whole, repairs)
  if settled is None:
    raise explain_lines(path, shown, None)
  return settled, repairs


def read_json_lines(path: pathlib.Path, shown: str, flags: Mapping[str, str]) -> Read:
  """Reads JSON objects, one a line, such as Amazon's reviews of 2014, 2018 and 2023."""
  try:
    first = json.loads(read_head(path, shown)[0])
    names = list(first) if isinstance(first, dict) else []
  except (ValueError, RecursionError):
    names = []
  if not names:
    raise DataError(f"{shown}, line 1: not a JSON object; check the format")
  roles = find_roles(names, flags, shown)
  types = {"user": pl.String(), "item": pl.String(), "timestamp": pl.Float64()}
  schema = {column: types.get(role, pl.Float32()) for role, column in roles.items()}
  try:
    events = (
      pl.scan_ndjson(path, schema=schema)
      .select(pl.col(column).alias(role) for role, column in roles.items())
      .collect(engine="streaming")
    )
  except FAILURES as error:
    raise explain_json(path, shown, roles, error) from error
  if has_gaps(events) or has_odd_labels(events):
    raise explain_json(path, shown, roles, None)
  return events, text_repairs(path)


def read_parquet(path: pathlib.Path, shown: str, flags: Mapping[str, str]) -> Read:
  """Reads the columns of a Parquet file; dates become seconds."""
  try:
    frame = pl.scan_parquet(path, glob=False)
    schema = frame.collect_schema()
  except FAILURES as error:
    said = str(error).split("\n")[0]
    raise DataError(f"{shown}: not a Parquet file ({said}); fetch it again") from error
  roles = find_roles(schema.names(), flags, shown)
  columns = []
  for role, name in roles.items():
    column, dtype = pl.col(name), schema[name]
    if role in ("user", "item"):
      if not (dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise DataError(f"{shown}: column {name!r} is {dtype}; ids must be integers or text")
      column = column if dtype.is_integer() else column.cast(pl.String)
    elif role == "timestamp" and dtype.is_temporal() and dtype not in (pl.Time, pl.Duration):
      column = column.cast(pl.Datetime("us")).dt.epoch("s")
    elif dtype.is_numeric() or dtype == pl.Boolean:
      whole = role == "timestamp" and dtype.is_integer()
      number = pl.Float64() if role == "timestamp" else pl.Float32()
      column = column.cast(pl.Int64() if whole else number)
    else:
      raise DataError(f"{shown}: column {name!r} is {dtype}; {role} must be numbers")
    columns.append(column.alias(role))
  try:
    events = frame.select(columns).collect(engine="streaming")
  except FAILURES as error:
    said = str(error).split("\n")[0]
    raise DataError(f"{shown}: damaged Parquet data ({said}); fetch it again") from error
  if has_gaps(events):
    for role, name in roles.items():
      values = events[role]
      good = values.is_finite() if values.dtype.is_float() else values.is_not_null()
      good = good.fill_null(False)
      if not good.all():
        place = f"{shown}, row {(good.arg_min() or 0) + 1}: no {role} (column {name!r})"
        raise DataError(f"{place}; fill it in or drop the row")
  if has_odd_labels(events):
    row = (~events["label"].is_in([0.0, 1.0])).arg_max() or 0
    raise DataError(f"{shown}, row {row + 1}: {ODD_LABEL}")
  return events, {}


def has_gaps(events: pl.DataFrame) -> bool:
  """Whether a value is missing, or a number is not finite."""
  return any(
    column.null_count() or (column.dtype.is_float() and not column.is_finite().all())
    for column in events
  )


def has_odd_labels(events: pl.DataFrame) -> bool:
  """Whether there are labels, and one is neither 0 nor 1."""
  return "label" in events.columns and not events["label"].is_in([0.0, 1.0]).all()
