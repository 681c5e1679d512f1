"""Arrays and tables in a folder, memory-mapped: whole or not at all, read where they are used.

Of tables, columns of numbers without gaps are mapped; other columns are read whole. Files that are
cut short or not of their index are named; their bytes are not summed up, for that would read them.
"""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from kdjax.data.errors import DataError

INDEX = "index.json"
_FORMAT = 1


class Mapped(NamedTuple):
  """What a folder holds.

  Attributes:
    arrays: by name, of numbers of any shape and dtype.
    tables: by name, of any columns.
    about: JSON-ready, whatever else belongs to them.
  """

  arrays: Mapping[str, np.ndarray]
  tables: Mapping[str, pl.DataFrame]
  about: Mapping[str, Any]


def save(folder: str | pathlib.Path, content: Mapped) -> None:
  """Writes a folder that `open_folder` maps; a run killed on the way leaves none of that name.

  Of several that write the same folder at once, the first one to end stays.

  Args:
    folder: must not be there yet.
    content: arrays of numbers (no objects); names without slashes and dots.
  """
  folder = pathlib.Path(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  part = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
  try:
    arrays, tables = dict(content.arrays), {}
    for name, table in content.tables.items():
      plain = [c.name for c in table if c.dtype.is_numeric() and not c.null_count()]
      table.drop(plain).write_ipc(part / f"{name}.arrow", compression="uncompressed")
      arrays |= {_column(name, table.columns.index(n)): table[n].to_numpy() for n in plain}
      tables[name] = {"columns": table.columns, "mapped": plain, "rows": table.height}
    for name, values in arrays.items():
      np.save(part / f"{name}.npy", values, allow_pickle=False)
    index = {
      "format": _FORMAT,
      "about": dict(content.about),
      "arrays": {n: {"dtype": str(v.dtype), "shape": v.shape} for n, v in arrays.items()},
      "tables": tables,
    }
    (part / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    part.chmod(0o755)
    try:
      os.rename(part, folder)
    except OSError:
      if not is_there(folder):
        raise
  finally:
    shutil.rmtree(part, ignore_errors=True)


def is_there(folder: str | pathlib.Path) -> bool:
  """Whether a folder was written whole."""
  return (pathlib.Path(folder) / INDEX).exists()


def open_folder(folder: str | pathlib.Path) -> Mapped:
  """Maps what `save` wrote; only what is looked at is read from the disk.

  Raises:
    DataError: naming the file that is missing or damaged.

  Example:
    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "rows"
    >>> save(folder, Mapped({"x": np.arange(6).reshape(3, 2)}, {}, {"of": "an example"}))
    >>> found = open_folder(folder)
    >>> found.arrays["x"][1:].tolist(), found.about["of"]
    ([[2, 3], [4, 5]], 'an example')
  """
  folder = pathlib.Path(folder)
  index = _read(folder / INDEX, lambda path: json.loads(path.read_text(encoding="utf-8")))
  if not isinstance(index, dict) or index.get("format") != _FORMAT:
    raise DataError(
      f"{folder / INDEX}: not of format {_FORMAT}; delete the folder and make it anew"
    )
  arrays, tables = {}, {}
  for name, said in index["arrays"].items():
    path = folder / f"{name}.npy"
    mode: Any = "r" if 0 not in said["shape"] else None  # Nothing cannot be mapped.
    arrays[name] = _read(path, lambda path: np.load(path, mmap_mode=mode, allow_pickle=False))  # noqa: B023
    if [str(arrays[name].dtype), list(arrays[name].shape)] != [said["dtype"], said["shape"]]:
      raise DataError(f"{path}: not the array that {INDEX} tells of; delete the folder")
  for name, said in index["tables"].items():
    path, columns = folder / f"{name}.arrow", said["columns"]
    table = _read(path, pl.read_ipc)
    if {*table.columns, *said["mapped"]} != {*columns} or table.height not in (0, said["rows"]):
      raise DataError(f"{path}: not the table that {INDEX} tells of; delete the folder")
    plain = {n: arrays.pop(_column(name, columns.index(n))) for n in said["mapped"]}
    found = dict(zip(table.columns, table.get_columns(), strict=True))
    found |= {n: pl.Series(n, values) for n, values in plain.items()}
    tables[name] = pl.DataFrame([found[n] for n in columns])
  return Mapped(arrays, tables, index["about"])


def _column(table: str, place: int) -> str:
  return f"{table}.{place}"


def _read(path: pathlib.Path, read: Any) -> Any:
  try:
    return read(path)
  except (OSError, ValueError, EOFError, pl.exceptions.PolarsError) as error:
    raise DataError(
      f"{path}: cannot be read ({error}); delete its folder to make it anew"
    ) from error
