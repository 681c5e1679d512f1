"""Readers of item attributes: titles, genres and whatever else lies beside a log."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import polars as pl

from kdjax.data.errors import DataError
from kdjax.data.plain import FAILURES, plain, read_head

_BESIDE = (
  "movies.csv",
  "movies.dat",
  "u.item",
  "items.tsv",
  "items.csv",
  "items.parquet",
  "titles.tsv",
  "titles.csv",
)
_ITEM_NAMES = ("item", "item_id", "itemid", "movieid", "parent_asin", "asin", "product_id")
_U_ITEM_GENRES = (
  *("unknown", "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary"),
  *("Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi"),
  *("Thriller", "War", "Western"),
)


def find(events: pathlib.Path) -> pathlib.Path | None:
  """The file of item attributes that usually lies beside these events, if there is one."""
  stem = events.name.removesuffix(".gz").rsplit(".", 1)[0]
  for name in (f"{stem}.item", *_BESIDE):
    path = events.with_name(name)
    if path.is_file() and path != events:
      return path
  return None


def read(path: pathlib.Path, item_type: pl.DataType) -> pl.DataFrame:
  """Reads item attributes, and `item_attributes.json` beside them as column `attributes`.

  Args:
    path: `movies.dat`, `u.item`, RecBole's `.item`, JSON lines, Parquet, CSV or TSV with a header.
    item_type: of the events' items; ids that do not fit it belong to no event and become null.

  Returns:
    Column `item` first, then the attributes under the file's own names.

  Raises:
    DataError: if the file cannot be read, or has no item column.
  """
  shown = str(path)
  with plain(path) as text:
    name = path.name.removesuffix(".gz").lower()
    try:
      frame = _read(text, shown, name)
    except DataError:
      raise
    except FAILURES as error:
      said = str(error).split("\n")[0]
      raise DataError(f"{shown}: cannot be read ({said}); check the file") from error
  lower = {column.lower(): column for column in reversed(frame.columns)}
  known = [lower[column] for column in _ITEM_NAMES if column in lower]
  item = known[0] if known else frame.columns[0]
  frame = frame.rename({item: "item"}).select("item", pl.exclude("item"))
  extra = path.with_name("item_attributes.json")
  if extra.is_file():
    frame = frame.join(_read_attributes(extra), on="item", how="left", maintain_order="left")
  return frame.with_columns(pl.col("item").cast(item_type, strict=False))


def _read(text: pathlib.Path, shown: str, name: str) -> pl.DataFrame:
  if name.endswith((".parquet", ".pq")):
    return pl.read_parquet(text, glob=False)
  if name == "movies.dat":
    return _read_split(text, shown, "::", 3, lambda f: f, ["item", "title", "genres"])
  if name == "u.item":
    return _read_split(text, shown, "|", 24, _u_item, ["item", "title", "genres"])
  head = read_head(text, shown)
  if head[0].startswith("{"):
    return pl.read_ndjson(text, infer_schema_length=None)
  separator = "\t" if "\t" in head[0] or name.endswith((".item", ".tsv")) else ","
  quote = '"' if separator == "," else None
  frame = pl.read_csv(text, separator=separator, quote_char=quote, infer_schema=False, glob=False)
  if name.endswith(".item"):  # RecBole's header says name:type.
    frame = frame.rename({column: column.split(":")[0] for column in frame.columns})
  return frame


def _u_item(fields: list[str]) -> list[str]:
  genres = [name for name, flag in zip(_U_ITEM_GENRES, fields[5:], strict=True) if flag == "1"]
  return [fields[0], fields[1], "|".join(genres)]


def _read_split(
  path: pathlib.Path,
  shown: str,
  separator: str,
  width: int,
  pick: Callable[[list[str]], list[str]],
  names: list[str],
) -> pl.DataFrame:
  raw = path.read_bytes()
  try:
    text = raw.decode("utf-8-sig")
  except UnicodeDecodeError:
    text = raw.decode("latin-1")  # What GroupLens wrote before 2015.
  rows: list[Any] = []
  for number, line in enumerate(text.splitlines(), start=1):
    fields = line.split(separator)
    if len(fields) != width:
      raise DataError(
        f"{shown}, line {number}: {len(fields)} field(s) where {width} were expected, cut at"
        f" {separator!r}; mend or remove the line"
      )
    rows.append(pick(fields))
  return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def _read_attributes(path: pathlib.Path) -> pl.DataFrame:
  try:
    table = json.loads(path.read_bytes())
    values = [[int(value) for value in row] for row in table.values()]
  except (ValueError, TypeError, AttributeError, OSError, RecursionError, OverflowError) as error:
    raise DataError(f"{path}: not an object of lists of numbers ({error}); mend it") from error
  return pl.DataFrame(
    {"item": list(table), "attributes": values},
    schema={"item": pl.String, "attributes": pl.List(pl.Int64)},
  )
