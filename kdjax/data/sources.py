"""One door for every log: the embedded one, tensorflow-datasets, and files of all common formats.

load("synthetic"), load("tfds:movielens/1m-ratings"), load("ratings.csv"), load("ml-1m/")
"""

import csv
import pathlib
import re
from collections.abc import Mapping
from typing import Literal

import polars as pl

from kdjax.data import faults, formats, items, plain, synthetic, tfds
from kdjax.data.errors import DataError
from kdjax.data.interactions import Log

Format = Literal[
  "auto", "csv", "movielens", "sasrec", "sequences", "json_lines", "recbole", "parquet"
]
_MOVIELENS = ("user", "item", "rating", "timestamp")
# What a folder of a known data set calls its events, most telling first.
_EVENT_FILES = (
  "ratings.dat",
  "ratings.csv",
  "u.data",
  "*.inter",
  "sequences.txt",
  "interactions.*",
  "events.*",
  "*.parquet",
  "*.json.gz",
  "*.jsonl.gz",
  "*.jsonl",
  "*.json",
  "*.txt",
  "*.csv",
  "*.tsv",
)
_NOT_EVENTS = re.compile(
  r"(?i)readme|licen[cs]e|^(items?|movies|titles|users?|tags|links|genome|meta|u)[._-]"
  r"|attributes|_ids\."
)
_UNITS = ((1e17, 10**9, "nano"), (1e14, 10**6, "micro"), (1e11, 10**3, "milli"))


def load(
  spec: str | pathlib.Path,
  *,
  user_column: str = "",
  item_column: str = "",
  timestamp_column: str = "",
  rating_column: str = "",
  label_column: str = "",
  separator: str = "",
  items_path: str | pathlib.Path = "",
  format: Format = "auto",
) -> Log:
  """Reads an interaction log.

  Formats: MovieLens `u.data` and `ratings.dat` (`ratings.csv` is a CSV); SASRec `user item`
  lines; `user item item ...` lines; JSON lines such as Amazon's reviews; RecBole's atomic files;
  Parquet; any delimited text with a header, or without one where columns are named `column_1`,
  `column_2` ... Any text may be gzip. Attributes of items are taken from a file of usual name
  beside the events (`movies.csv`, `items.tsv`, `titles.tsv`, `*.item` ...), or from `items_path`.

  Mended and counted in `Log.repairs`: byte order marks, CRLF, blank lines, timestamps in
  milli-, micro- or nanoseconds (known by a size no date in seconds has), ids beyond int64 (kept as
  text). Ids may be any integers or text.

  Args:
    spec: `synthetic`, `tfds:name/config`, `tfds:folder` (one that `kdjax.data.tfds` wrote), or the
      path of a file or folder.
    user_column: name of the user column; empty goes by well-known names, here and below.
    item_column: name of the item column.
    timestamp_column: name of the time column, unix seconds.
    rating_column: name of the rating column.
    label_column: name of the click column, 0 or 1.
    separator: between fields, one character or `::`; empty looks at the first lines.
    items_path: file of item attributes.
    format: of the file; `auto` goes by name and first lines.

  Returns:
    The log.

  Raises:
    DataError: for anything that cannot be read, with file, line and mend.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder) / "log.csv"
    ...   _ = path.write_text("userId,movieId,rating,timestamp\\n1,10,4.5,964982703000\\n")
    ...   log = load(path)
    >>> log.events.row(0), dict(log.repairs)
    ((1, 10, 964982703, 4.5), {'timestamps in milliseconds brought to seconds': 1})
  """
  named = (user_column, item_column, timestamp_column, rating_column, label_column)
  flags = {role: name for role, name in zip(formats.ROLES, named, strict=True) if name}
  if str(spec) == "synthetic":
    return synthetic.generate()
  if str(spec).startswith("tfds:"):
    return finish(tfds.load(str(spec).removeprefix("tfds:"), flags), str(spec))
  path = _find_events(pathlib.Path(spec))
  shown = str(path)
  with plain.plain(path) as text:
    events, repairs = _read(text, path, format, flags, separator)
  side = pathlib.Path(items_path) if items_path else items.find(path)
  attributes = None if side is None else items.read(side, events["item"].dtype)
  return finish(Log(events, attributes, repairs), shown)


def finish(log: Log, shown: str) -> Log:
  """Brings timestamps to int64 seconds, and checks labels and that there are events.

  Raises:
    DataError: if there is no event, or a label is neither 0 nor 1.
  """
  events, repairs = log.events, dict(log.repairs)
  if not events.height:
    raise DataError(f"{shown}: no events after the header; check that it was written completely")
  if "timestamp" in events.columns:
    high = events["timestamp"].max()
    for limit, divisor, unit in _UNITS:
      if high > limit:  # type: ignore[operator]
        late = events["timestamp"] > limit
        repairs[f"timestamps in {unit}seconds brought to seconds"] = int(late.sum())
        column = pl.when(late).then(pl.col("timestamp") // divisor).otherwise(pl.col("timestamp"))
        events = events.with_columns(column.alias("timestamp"))
        high = events["timestamp"].max()
    try:
      events = events.with_columns(pl.col("timestamp").floor().cast(pl.Int64))
    except pl.exceptions.PolarsError as error:
      raise DataError(
        f"{shown}: a timestamp is beyond int64; bring the column to seconds"
      ) from error
  if formats.has_odd_labels(events):
    raise DataError(f"{shown}: {faults.ODD_LABEL}")
  return Log(events, log.items, repairs, shown)


def _find_events(path: pathlib.Path) -> pathlib.Path:
  try:
    if path.is_file():
      return path
    found = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else None
  except (OSError, ValueError) as error:
    raise DataError(f"{str(path)!r}: cannot be opened ({error}); check the path") from error
  if found is None:
    raise DataError(
      f"{path}: no such file or folder; give a path, 'synthetic' or 'tfds:name/config'"
    )
  known = [p for p in found if p.name == "u.data" or not _NOT_EVENTS.search(p.name)]
  for pattern in _EVENT_FILES:
    for candidate in known:
      if candidate.match(pattern) or candidate.match(pattern + ".gz"):
        return candidate
  names = ", ".join(p.name for p in found[:20]) or "nothing"
  raise DataError(f"{path}: no event file among {names}; give the path of the file itself")


def _read(
  text: pathlib.Path,
  path: pathlib.Path,
  format: Format,
  flags: Mapping[str, str],
  separator: str,
) -> formats.Read:
  """Events of one file that is plain by now; messages call it by its own name."""
  shown = str(path)
  if (len(separator) != 1 and separator not in ("", "::")) or not separator.isascii():
    raise DataError(f"separator {separator!r}: give one ASCII character or '::'")
  name = path.name.lower().removesuffix(".gz")
  if format == "parquet" or (format == "auto" and name.endswith((".parquet", ".pq"))):
    return formats.read_parquet(text, shown, flags)
  head = plain.read_head(text, shown)
  if format == "auto":
    format = _detect(name, head, flags, shown)
  if format == "json_lines":
    return formats.read_json_lines(text, shown, flags)
  if format == "sequences":
    return formats.read_sequences(text, shown)
  separator = separator or _guess_separator(head, format)
  if format in ("movielens", "sasrec"):
    names = list(_MOVIELENS if format == "movielens" else _MOVIELENS[:2])
    table = plain.Table(text, shown, separator, names, False, False, True)
    return formats.read_table(table, {name: name for name in names})
  quoted = format == "csv" and separator != "::" and separator != "\t"
  try:
    names = next(csv.reader(head[:1], delimiter=separator)) if quoted else head[0].split(separator)
  except csv.Error as error:
    raise DataError(f"{shown}, line 1: {error}; save the file with LF line ends") from error
  header = not any(
    re.fullmatch(r"column_\d+", flag) and flag not in names for flag in flags.values()
  )
  if not header:
    names = [f"column_{n}" for n in range(1, len(names) + 1)]
  if format == "recbole":
    typed, names = names, [name.split(":")[0] for name in names]
    if not all(":" in name for name in typed):
      raise DataError(f"{shown}, line 1: not a RecBole header (name:type ...); set format='csv'")
  names = [name if name not in names[:n] else f"{name} ({n + 1})" for n, name in enumerate(names)]
  roles = formats.find_roles(names, flags, shown, separator)
  return formats.read_table(
    plain.Table(text, shown, separator, names, header, quoted, False), roles
  )


def _detect(name: str, head: list[str], flags: Mapping[str, str], shown: str) -> Format:
  """The format of a text file by its name and first lines."""
  if name.endswith(".inter"):
    return "recbole"
  if name.endswith((".json", ".jsonl", ".ndjson")) or head[0].lstrip().startswith("{"):
    return "json_lines"
  if flags or name.endswith((".csv", ".tsv")):
    return "csv"
  rows = [line.split("::") if "::" in line else line.split() for line in head]
  widths = {len(row) for row in rows}
  if name in ("u.data", "ratings.dat") or (widths == {4} and _numbers(rows, r"\d+(\.\d+)?")):
    return "movielens"
  if _numbers(rows, r"[+-]?\d+"):
    # The reader of sequences is the one that takes any number of blanks between fields.
    single = all(len(re.split(r"[ \t]", line)) == 2 for line in head)
    return "sasrec" if single else "sequences"
  if re.search(r"[,;\t|]|::", head[0]):
    return "csv"
  raise DataError(
    f"{shown}, line 1: no known format begins with {head[0][:40]!r}; set format, or the columns"
  )


def _numbers(rows: list[list[str]], pattern: str) -> bool:
  return all(re.fullmatch(pattern, field) for row in rows for field in row)


def _guess_separator(head: list[str], format: Format) -> str:
  if format == "recbole":
    return "\t"
  choices = (
    ("::", "\t", ",", ";", "|", " ") if format == "csv" else ("::", "\t", " ", ",", ";", "|")
  )
  return next((choice for choice in choices if choice in head[0]), choices[1])
