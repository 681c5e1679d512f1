"""Original ids to our numbers and back, in memory and on disk."""

import pathlib
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from kdjax.data.errors import DataError

if TYPE_CHECKING:
  from kdjax.data.interactions import Dataset


def encode(column: pl.Series) -> tuple[np.ndarray, pl.Series]:
  """Ids as positions in their sorted distinct values: int32 `[N]`, and those values.

  Example:
    >>> codes, ids = encode(pl.Series(["b", "a", "b"]))
    >>> codes.tolist(), ids.to_list()
    ([1, 0, 1], ['a', 'b'])
  """
  ids = column.unique().sort()
  codes = pl.int_range(len(ids), dtype=pl.Int32, eager=True)
  if ids.dtype.is_integer() and int(ids[-1]) - int(ids[0]) < 8 * len(column) + 1024:
    # A dense range of integers: one gather instead of hashing every event.
    low = int(ids[0])
    table = np.zeros(int(ids[-1]) - low + 1, np.int32)
    table[ids.to_numpy() - low] = codes.to_numpy()
    return table[column.to_numpy() - low], ids
  return column.replace_strict(ids, codes, return_dtype=pl.Int32).to_numpy(), ids


def recode(codes: np.ndarray, ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
  """Codes and ids with the ids that no code names taken out.

  Example:
    >>> codes, ids = recode(np.array([2, 0]), pl.Series(["a", "b", "c"]))
    >>> codes.tolist(), ids.to_list()
    ([1, 0], ['a', 'c'])
  """
  used = np.bincount(codes, minlength=len(ids)) > 0
  return (np.cumsum(used, dtype=np.int32) - 1)[codes], ids.filter(used)


def save_ids(dataset: "Dataset", folder: str | pathlib.Path) -> None:
  """Writes `user_ids.parquet` and `item_ids.parquet`: one column `id`, row n is our id n."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, ids in (("user_ids", dataset.user_ids), ("item_ids", dataset.item_ids)):
    ids.alias("id").to_frame().write_parquet(folder / f"{name}.parquet")


def load_ids(folder: str | pathlib.Path) -> tuple[pl.Series, pl.Series]:
  """Reads what `save_ids` wrote: the original ids of users and of items.

  Raises:
    DataError: if a file is missing or no id map.

  Example:
    >>> import tempfile
    >>> from kdjax.data.interactions import Log, prepare
    >>> data = prepare(Log(pl.DataFrame({"user": ["x", "x", "y"], "item": [7, 9, 9]})))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   save_ids(data, folder)
    ...   [ids.to_list() for ids in load_ids(folder)]
    [['x', 'y'], [7, 9]]
  """
  out = []
  for name in ("user_ids", "item_ids"):
    path = pathlib.Path(folder) / f"{name}.parquet"
    try:
      out.append(pl.read_parquet(path, columns=["id"])["id"].alias(name))
    except (OSError, pl.exceptions.PolarsError) as error:
      raise DataError(
        f"{path}: not an id map ({error}); write it with kdjax.data.interactions.save_ids"
      ) from error
  return out[0], out[1]
