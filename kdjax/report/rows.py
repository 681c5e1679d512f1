"""Result rows: read from files, flattened, averaged over seeds."""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

RESULT_FILE = "result.json"
Row = dict[str, Any]

# Where a nested result keeps what a flat row calls by another name.
_RENAMED = {
  "num_params": "parameters",
  "num_nonzero": "nonzero",
  "num_bytes": "bytes",
}


class ResultError(ValueError):
  """A result file that is missing, damaged or incomplete; the message names it and the mend."""


def read_results(paths: Iterable[str | pathlib.Path]) -> list[Row]:
  """The rows of result files, in the order of `paths`.

  Args:
    paths: `result.json` files, or folders that hold one.

  Returns:
    One row a result, or the rows of a result that lists `rows`; each with `workdir`, the name of
    the folder it came from.

  Raises:
    ResultError: if a file is missing, is not JSON or is not a JSON object, naming the file.

  Example:
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder, "result.json")
    ...   _ = path.write_text('{"name": "teacher", "quality": 0.2}')
    ...   read_results([path])[0]["quality"]
    0.2
  """
  rows: list[Row] = []
  for path in map(pathlib.Path, paths):
    file = path / RESULT_FILE if path.is_dir() else path
    result = _read_json(file)
    inner = result.get("rows", [result])
    if not isinstance(inner, list) or not all(isinstance(row, dict) for row in inner):
      raise ResultError(f"{file}: `rows` is not a list of objects; run its job again")
    rows += [{"workdir": file.parent.name, **row} for row in inner]
  return rows


def _read_json(file: pathlib.Path) -> Row:
  try:
    result = json.loads(file.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise ResultError(f"{file}: no such file; has the run that writes it finished?") from error
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ResultError(f"{file}: not JSON ({error}); delete it and run its job again") from error
  if not isinstance(result, dict):
    raise ResultError(f"{file}: holds a JSON {type(result).__name__} instead of an object")
  return result


def flatten(result: Mapping[str, Any], *, metric: str | None = None) -> Row:
  """One flat row of a result whose quality, size and cost are nested; a flat row stays as it is.

  Args:
    result: with `quality` either a number, or an object of metrics, each `{value, low, high}`;
      and optionally `size` and `cost` objects, whose numbers move up.
    metric: which of the metrics is the quality; `result["metric"]` if not given.

  Returns:
    Row with `name`, `quality` and, as far as they are known, `metric`, `low`, `high`, `seed`,
    `parameters`, `nonzero`, `bytes`, `macs`, `latency_p50_ms`, `latency_p99_ms`, `throughput`.

  Raises:
    ResultError: if the result has no such metric, listing those it has.

  Example:
    >>> flatten({"name": "a", "metric": "ndcg@10", "quality": {"ndcg@10": {"value": 0.5}}})
    {'name': 'a', 'metric': 'ndcg@10', 'quality': 0.5}
  """
  row = {key: value for key, value in result.items() if not isinstance(value, dict | list | tuple)}
  row.setdefault("name", result.get("job", result.get("workdir", "")))
  for part in ("size", "cost"):
    for key, value in result.get(part, {}).items():
      row[_RENAMED.get(key, key)] = value
  quality = result.get("quality")
  if isinstance(quality, Mapping):
    metric = metric or result.get("metric")
    if metric not in quality:
      raise ResultError(f"{row['name']}: no metric {metric!r} among {sorted(quality)}")
    found = quality[metric]
    found = found if isinstance(found, Mapping) else {"value": found}
    row |= {"metric": metric, "quality": found["value"]}
    row |= {key: found[key] for key in ("low", "high") if key in found}
  return row


def aggregate(rows: Iterable[Mapping[str, Any]], *, by: str | Sequence[str] = "name") -> list[Row]:
  r"""Mean and standard deviation over the rows that agree in `by`: usually over seeds.

  $$\bar x = \frac{1}{n} \sum_i x_i, \quad s = \sqrt{\frac{1}{n - 1} \sum_i (x_i - \bar x)^2}$$

  Args:
    rows: flat rows.
    by: the key, or keys, whose values make a group.

  Returns:
    One row a group, in order of appearance: `runs` (how many rows), every number that all rows of
    the group have as its mean and, for two rows or more, its sample standard deviation as
    `<key>_std`; anything else where all rows agree. A single row keeps its values.

  Raises:
    ResultError: if a row lacks one of the keys in `by`.

  Example:
    >>> rows = [{"name": "a", "quality": 1.0}, {"name": "a", "quality": 3.0}]
    >>> aggregate(rows)[0]["quality"], round(aggregate(rows)[0]["quality_std"], 3)
    (2.0, 1.414)
  """
  keys = (by,) if isinstance(by, str) else tuple(by)
  groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
  for row in rows:
    if missing := [key for key in keys if key not in row]:
      raise ResultError(f"a row lacks {missing[0]!r}; it has {sorted(row)}")
    groups.setdefault(tuple(row[key] for key in keys), []).append(row)
  return [_merge(group, keys) for group in groups.values()]


def _merge(group: list[Mapping[str, Any]], keys: tuple[str, ...]) -> Row:
  merged: Row = {}
  for key, first in group[0].items():
    values = [row[key] for row in group if key in row]
    if len(values) < len(group):
      continue
    if key not in keys and all(map(_is_number, values)):
      same = all(value == first for value in values)
      merged[key] = first if same else float(np.mean(values))
      if len(group) > 1 and key != "seed":
        merged[f"{key}_std"] = 0.0 if same else float(np.std(values, ddof=1))
    elif all(value == first for value in values):
      merged[key] = first
  if len(group) > 1:
    merged.pop("seed", None)
  return merged | {"runs": len(group)}


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def gap_recovered(student_alone: float, distilled: float, teacher: float) -> float:
  r"""The share of the gap between student and teacher that distillation closed.

  $$g = \frac{q_{distilled} - q_{alone}}{q_{teacher} - q_{alone}}$$

  Args:
    student_alone: quality of the student trained without a teacher.
    distilled: quality of the student under judgement.
    teacher: quality of the teacher.

  Returns:
    0 as good as alone, 1 as good as the teacher; below 0 and above 1 happen. NaN where the teacher
    is not better than the student alone: there is no gap to recover.

  Example:
    >>> round(gap_recovered(0.10, 0.16, 0.18), 3)
    0.75
  """
  gap = teacher - student_alone
  return (distilled - student_alone) / gap if gap > 0 else math.nan


def summarise(
  rows: Iterable[Mapping[str, Any]],
  *,
  by: str | Sequence[str] = "name",
  metric: str | None = None,
  alone: str = "alone",
  teacher: str = "teacher",
) -> list[Row]:
  """Rows of a results table: flattened, averaged over seeds, with the share of the gap recovered.

  Args:
    rows: as `read_results` gives them, or flat.
    by: what makes one row of the table.
    metric: which metric is the quality; each row's own `metric` if not given.
    alone: `name` of the student without a teacher.
    teacher: `name` of the teacher.

  Returns:
    Rows as of `aggregate`; where both reference rows are present, the others of the student also
    have `gap_recovered`.

  Raises:
    ResultError: if a row lacks the metric or a key in `by`.

  Example:
    >>> rows = [{"name": n, "quality": q} for n, q in [("teacher", 3), ("alone", 1), ("kd", 2)]]
    >>> summarise(rows)[2]["gap_recovered"]
    0.5
  """
  table = aggregate([flatten(row, metric=metric) for row in rows], by=by)
  quality = {row.get("name"): row["quality"] for row in table if "quality" in row}
  if alone in quality and teacher in quality:
    for row in table:
      if row.get("name") not in (alone, teacher) and "quality" in row:
        row["gap_recovered"] = gap_recovered(quality[alone], row["quality"], quality[teacher])
  return table
