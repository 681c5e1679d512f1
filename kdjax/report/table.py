"""Result rows as Markdown and CSV, and the marked blocks of a README that hold them."""

import csv
import io
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.report.rows import ResultError

MISSING = "–"  # noqa: RUF001 - an en dash is meant.


class Column(NamedTuple):
  """A column of a Markdown table.

  Attributes:
    header: what stands above it.
    cell: `cell(row) -> str`, or `MISSING`.
  """

  header: str
  cell: Callable[[Mapping[str, Any]], str]


def _number(key: str, form: Callable[[float], str]) -> Callable[[Mapping[str, Any]], str]:
  def cell(row: Mapping[str, Any]) -> str:
    value = row.get(key)
    return MISSING if value is None or math.isnan(value) else form(value)

  return cell


def _quality(row: Mapping[str, Any]) -> str:
  value = row.get("quality")
  if value is None:
    return MISSING
  text = f"{value:.4f}"
  if row.get("runs", 1) > 1 and "quality_std" in row:
    return f"{text} ± {row['quality_std']:.4f}"
  if "low" in row and "high" in row:
    return f"{text} [{row['low']:.4f}, {row['high']:.4f}]"
  return text


def three_digits(value: float) -> str:
  """`value` with three significant digits, and never in scientific notation.

  Example:
    >>> three_digits(12345.6), three_digits(1.2345), three_digits(0.00012345), three_digits(0)
    ('12,346', '1.23', '0.000123', '0.00')
  """
  if value == 0 or not math.isfinite(value):
    return f"{value:.2f}"
  digits = 2 - math.floor(math.log10(abs(value)))
  return f"{value:,.{max(0, digits)}f}"


COLUMNS = (
  Column("model", lambda row: str(row.get("name", ""))),
  Column("quality", _quality),
  Column("gap recovered", _number("gap_recovered", lambda value: f"{value:.0%}")),
  Column("parameters", _number("parameters", lambda value: f"{value:,.0f}")),
  Column("not 0", _number("nonzero", lambda value: f"{value:,.0f}")),
  Column("MB", _number("bytes", lambda value: three_digits(value / 1e6))),
  Column("MACs, M", _number("macs", lambda value: three_digits(value / 1e6))),
  Column("p50, ms", _number("latency_p50_ms", three_digits)),
  Column("p99, ms", _number("latency_p99_ms", three_digits)),
  Column("requests/s", _number("throughput", lambda value: f"{value:,.0f}")),
)


def to_markdown(rows: Iterable[Mapping[str, Any]], *, columns: Sequence[Column] = COLUMNS) -> str:
  """A Markdown table; a column that no row has is left out.

  Args:
    rows: flat rows, as of `summarise`. Quality shows its standard deviation over runs (±), or for
      a single run its interval in brackets.
    columns: what to show, in order.

  Returns:
    The table, without a line break at the end. The header of the quality is the rows' `metric`
    where they share one; where a quality is a mean of runs, the header says of how many.

  Raises:
    ResultError: if there are no rows.

  Example:
    >>> print(to_markdown([{"name": "int8", "quality": 0.25, "bytes": 250_000}]))
    | model | quality | MB |
    |---|---:|---:|
    | int8 | 0.2500 | 0.250 |
  """
  rows = list(rows)
  if not rows:
    raise ResultError("no rows to put in a table")
  cells = [[column.cell(row) for row in rows] for column in columns]
  # The number of non-zero parameters is worth a column only where some are 0.
  dense = all(row.get("nonzero") in (None, row.get("parameters")) for row in rows)
  kept = [
    (_header(column.header, rows), texts)
    for column, texts in zip(columns, cells, strict=True)
    if any(text != MISSING for text in texts) and not (column.header == "not 0" and dense)
  ]
  lines = [[header for header, _ in kept], *zip(*(texts for _, texts in kept), strict=True)]
  text = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
  text.insert(1, "|---|" + "---:|" * (len(kept) - 1))
  return "\n".join(text)


def _header(header: str, rows: Sequence[Mapping[str, Any]]) -> str:
  if header != "quality":
    return header
  metrics = {row.get("metric") for row in rows}
  metric = metrics.pop() if len(metrics) == 1 else None
  text = str(metric or header)
  runs = sorted({row.get("runs", 1) for row in rows if row.get("runs", 1) > 1})
  if runs:
    counts = " or ".join(map(str, runs))
    text += f" (± standard deviation of {counts} seeds; [95 %] of users)"
  elif any("low" in row for row in rows):
    text += " [95 %]"
  return text


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
  """All keys of flat rows as comma-separated values with a header, full precision.

  Returns:
    The text; a value that a row lacks is empty, and so is NaN.

  Raises:
    ResultError: if there are no rows.

  Example:
    >>> print(to_csv([{"name": "a", "bytes": 3}, {"name": "b", "macs": 4}]), end="")
    name,bytes,macs
    a,3,
    b,,4
  """
  rows = list(rows)
  if not rows:
    raise ResultError("no rows to put in a table")
  keys = list(dict.fromkeys(key for row in rows for key in row))
  file = io.StringIO()
  writer = csv.DictWriter(file, keys, restval="", lineterminator="\n")
  writer.writeheader()
  for row in rows:
    writer.writerow(
      {k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
    )
  return file.getvalue()


def replace_block(text: str, name: str, content: str) -> str:
  """`text` with what stands between the two comments of block `name` replaced.

  Args:
    text: Markdown with one `<!-- begin NAME -->` and one `<!-- end NAME -->` after it.
    name: of the block.
    content: what shall stand between, on lines of its own.

  Raises:
    ResultError: if either comment is missing, occurs twice, or they are in the wrong order.

  Example:
    >>> print(replace_block("<!-- begin t -->old<!-- end t -->", "t", "new"))
    <!-- begin t -->
    new
    <!-- end t -->
  """
  begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
  if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
    raise ResultError(f"needs exactly one {begin} and, after it, exactly one {end}")
  before, rest = text.split(begin)
  return f"{before}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}"


def update_file(path: str | pathlib.Path, blocks: Mapping[str, str]) -> bool:
  """Rewrites marked blocks of a Markdown file; the rest of it stays byte for byte.

  Args:
    path: of the file, such as README.md.
    blocks: contents by name of block, usually `to_markdown(summarise(read_results(paths)))`.

  Returns:
    Whether anything changed; an unchanged file is not written.

  Raises:
    ResultError: naming the file, if it is missing or lacks a block.
  """
  path = pathlib.Path(path)
  try:
    before = path.read_bytes().decode("utf-8")
  except FileNotFoundError as error:
    raise ResultError(f"{path}: no such file") from error
  after = before
  for name, content in blocks.items():
    try:
      after = replace_block(after, name, content)
    except ResultError as error:
      raise ResultError(f"{path}: {error}") from error
  if after == before:
    return False
  path.write_bytes(after.encode("utf-8"))
  return True
