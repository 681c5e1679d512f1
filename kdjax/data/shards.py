"""Rows of bytes in checksummed shards on disk: whole or not at all, read at random.

A folder holds `index.json`, `shard-00000.array_record`, ... and, once a shard is whole, a note
beside it. Processes may write different shards of one folder at once; a killed one leaves no half
shard. Every record carries a checksum that is compared when it is read.
"""

import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from kdjax.data.errors import DataError

INDEX = "index.json"
_FORMAT = 1
_CHECKSUM = 4  # Bytes before every row.
# What array_record adds to a record, and to a file (padding to its blocks): measured, rounded up.
_PER_RECORD, _PER_FILE = 128, 2**17


class Layout(NamedTuple):
  """How rows lie in shards.

  Attributes:
    num_rows: R, of all shards.
    row_bytes: W, of each row.
    rows_per_shard: of every shard but the last.
  """

  num_rows: int
  row_bytes: int
  rows_per_shard: int

  @property
  def num_shards(self) -> int:
    """Files."""
    return -(-self.num_rows // self.rows_per_shard)

  @property
  def bytes_on_disk(self) -> int:
    """What all shards take, at most.

    Example:
      >>> Layout(num_rows=10_000, row_bytes=5_000, rows_per_shard=4_096).bytes_on_disk
      51713216
    """
    record = self.row_bytes + _CHECKSUM + _PER_RECORD
    return self.num_rows * record + self.num_shards * _PER_FILE

  def rows_of(self, shard: int) -> range:
    """Which rows a shard holds."""
    first = shard * self.rows_per_shard
    return range(first, min(first + self.rows_per_shard, self.num_rows))


def start(folder: pathlib.Path, layout: Layout, about: Mapping[str, Any]) -> list[int]:
  """Prepares a folder and says which shards are missing.

  Args:
    folder: made where it is not there.
    layout: of the rows.
    about: what the rows are, JSON; kept in the index.

  Returns:
    The numbers of the shards that are still to be written.

  Raises:
    DataError: if the folder holds rows of another kind, or the disk has not the room.
  """
  folder.mkdir(parents=True, exist_ok=True)
  index = {"format": _FORMAT, "about": dict(about), "layout": layout._asdict()}
  index = json.loads(json.dumps(index))  # As it will be read.
  if (folder / INDEX).exists():
    found = _read_json(folder / INDEX)
    if found != index:
      raise DataError(f"{folder} holds other rows ({_difference(found, index)}); give a new folder")
  missing = [n for n in range(layout.num_shards) if not _is_whole(folder, n)]
  needed = layout.bytes_on_disk * len(missing) // max(layout.num_shards, 1)
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise DataError(
      f"{folder}: {needed / 1e9:,.2f} GB to write and {free / 1e9:,.2f} GB free on its disk; keep "
      "less, or give a folder on another disk"
    )
  _write_whole(folder / INDEX, json.dumps(index, indent=1).encode())
  return missing


def write(folder: pathlib.Path, layout: Layout, shard: int, rows: np.ndarray) -> None:
  """Writes one shard, whole or not at all.

  Args:
    folder: that `start` prepared.
    layout: of the rows.
    shard: its number.
    rows: uint8 `[r, W]`, the rows that `layout.rows_of(shard)` names.

  Raises:
    ValueError: if the rows have another shape.
  """
  expected = (len(layout.rows_of(shard)), layout.row_bytes)
  if rows.shape != expected or rows.dtype != np.uint8:
    raise ValueError(f"shard {shard} takes uint8 {expected}, got {rows.dtype} {rows.shape}")
  path = _path(folder, shard)
  part = path.with_name(f"{path.name}.{os.getpid()}.partial")
  writer = ArrayRecordWriter(str(part), "group_size:1,uncompressed")
  for row in rows:
    data = row.tobytes()
    writer.write(zlib.crc32(data).to_bytes(_CHECKSUM, "little") + data)
  writer.close()
  size = part.stat().st_size
  part.replace(path)
  _write_whole(_note(path), json.dumps({"rows": len(rows), "bytes": size}).encode())


class Rows:
  """Rows on disk that index like an array `uint8 [R, W]`.

  Attributes:
    layout: of the rows.
    about: what they are.
  """

  dtype = np.dtype(np.uint8)

  def __init__(self, folder: pathlib.Path, layout: Layout, about: dict[str, Any]):
    self.layout, self.about = layout, about
    self._folder = folder
    self._readers: dict[int, ArrayRecordReader] = {}

  @property
  def shape(self) -> tuple[int, int]:
    """(R, W)."""
    return self.layout.num_rows, self.layout.row_bytes

  def __len__(self) -> int:
    return self.layout.num_rows

  def __getitem__(self, rows: Any) -> np.ndarray:
    """Some rows, `uint8 [n, W]`.

    Args:
      rows: a slice, or ints in [0, R).

    Raises:
      DataError: naming the file, if a row is not what was written.
    """
    rows = np.arange(len(self))[rows]
    out = np.empty((len(rows), self.layout.row_bytes), np.uint8)
    shards = rows // self.layout.rows_per_shard
    for shard in np.unique(shards).tolist():
      places = np.flatnonzero(shards == shard)
      numbers = (rows[places] - shard * self.layout.rows_per_shard).tolist()
      for place, record in zip(places, self._reader(shard).read(numbers), strict=True):
        data = record[_CHECKSUM:]
        if (
          len(data) != out.shape[1] or zlib.crc32(data).to_bytes(4, "little") != record[:_CHECKSUM]
        ):
          raise DataError(
            f"{_path(self._folder, shard)}: row {rows[place]} is damaged; delete the file and "
            "write it again"
          )
        out[place] = np.frombuffer(data, np.uint8)
    return out

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    del copy
    return self[:] if dtype is None else self[:].astype(dtype)

  def _reader(self, shard: int) -> ArrayRecordReader:
    if shard not in self._readers:
      self._readers[shard] = ArrayRecordReader(str(_path(self._folder, shard)))
    return self._readers[shard]


def open_rows(folder: str | pathlib.Path) -> Rows:
  """Opens what `write` has written.

  Raises:
    DataError: naming the file, if the folder holds no such rows, a shard is missing, or one has
      not the size that it was written with.
  """
  folder = pathlib.Path(folder)
  if not (folder / INDEX).exists():
    raise DataError(f"{folder}: no {INDEX} in it")
  index = _read_json(folder / INDEX)
  if index.get("format") != _FORMAT:
    raise DataError(f"{folder / INDEX}: format {index.get('format')!r}, this version reads 1")
  try:
    layout = Layout(**index["layout"])
    about = dict(index["about"])
  except (KeyError, TypeError) as error:
    raise DataError(f"{folder / INDEX}: not an index of rows: {error}") from error
  missing = [n for n in range(layout.num_shards) if not _is_whole(folder, n)]
  if missing:
    raise DataError(
      f"{folder}: {len(missing)} of {layout.num_shards} shards are missing or not as they were "
      f"written, such as {_path(folder, missing[0]).name}; run what writes them again"
    )
  return Rows(folder, layout, about)


def _path(folder: pathlib.Path, shard: int) -> pathlib.Path:
  return folder / f"shard-{shard:05d}.array_record"


def _note(path: pathlib.Path) -> pathlib.Path:
  return path.with_suffix(".json")


def _is_whole(folder: pathlib.Path, shard: int) -> bool:
  path = _path(folder, shard)
  if not (path.exists() and _note(path).exists()):
    return False
  return _read_json(_note(path)).get("bytes") == path.stat().st_size


def _write_whole(path: pathlib.Path, data: bytes) -> None:
  part = path.with_name(f"{path.name}.{os.getpid()}.partial")
  part.write_bytes(data)
  part.replace(path)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return dict(json.loads(path.read_text(encoding="utf-8")))
  except (ValueError, TypeError) as error:
    raise DataError(f"{path} is damaged: {error}") from error


def _difference(before: Any, now: Any, name: str = "") -> str:
  """The first place in which two JSON values differ."""
  if isinstance(before, dict) and isinstance(now, dict):
    for key in [*now, *before]:
      if before.get(key) != now.get(key):
        return _difference(before.get(key), now.get(key), f"{name}.{key}".strip("."))
  return f"{name} {before!r}, now {now!r}"
