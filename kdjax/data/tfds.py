"""tensorflow-datasets, with or without TensorFlow: its logs read, any log written to array_record.

`write` turns a log into array_record files once, one record a user; `open_histories` then reads
any user's record without touching the others, from several processes if need be.
"""

import contextlib
import hashlib
import importlib
import pathlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from kdjax.data import formats
from kdjax.data.errors import DataError
from kdjax.data.interactions import Log

_BLOCK = 8192  # Records read at a time.
_ROWS = 1 << 20  # Rows hashed at a time.
_NAME, _VERSION = "interactions", "1.0.0"


def load(spec: str, flags: Mapping[str, str]) -> Log:
  """Reads a prepared tensorflow-datasets log.

  Args:
    spec: `name/config` of a data set prepared as array_record (in `TFDS_DATA_DIR` or its default
      place), or a folder that `write` or TFDS made.
    flags: column by role where it is not a well-known name.

  Returns:
    All splits as one log; MovieLens comes with titles and genres.

  Raises:
    DataError: if the data set is unknown, not prepared, not array_record, or lacks a column.
  """
  folder = _find_folder(pathlib.Path(spec))
  builder = _from_folder(folder) if folder else _from_registry(spec)
  features, shown = builder.info.features, f"tfds:{spec}"
  if not hasattr(features, "keys"):
    raise DataError(f"{shown}: records have no columns; only sets of named features are logs")
  roles = formats.find_roles(list(features), flags, shown)
  if folder and (folder / "items.parquet").is_file():
    items: pl.DataFrame | None = pl.read_parquet(folder / "items.parquet")
  else:
    items = None
  wanted = list(roles.values())
  titles = [name for name in ("movie_title", "movie_genres") if name in features]
  columns: dict[str, list[Any]] = {name: [] for name in wanted + titles}
  for source in _sources(builder, shown):
    for start in range(0, len(source), _BLOCK):
      for record in source.__getitems__(range(start, min(start + _BLOCK, len(source)))):
        for name, values in columns.items():
          values.append(record[name])
  events = pl.DataFrame({role: _column(columns[name]) for role, name in roles.items()})
  nested = [role for role in roles if isinstance(events.schema[role], pl.List)]
  events = events.explode(nested) if nested else events
  if titles:
    items = _movies(events["item"], features, {name: columns[name] for name in titles})
  casts = [pl.col(role).cast(pl.Float32) for role in ("rating", "label") if role in roles]
  return Log(events.with_columns(casts), items)


def write(log: Log, folder: str | pathlib.Path) -> pathlib.Path:
  """Writes a log as array_record files by a TFDS builder, unless the folder holds it already.

  A record is a user: `user` and, as sequences in file order, `item` and the optional columns. Sort
  the log by time first if the file order is not.

  Args:
    log: from `kdjax.data.sources.load`.
    folder: where to; one log a folder.

  Returns:
    The folder of the data, for `open_histories` and for `load("tfds:folder")`.

  Raises:
    DataError: if the folder holds another log.

  Example:
    >>> import tempfile
    >>> log = Log(pl.DataFrame({"user": [7, 8, 7], "item": [1, 2, 3]}))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   histories = open_histories(write(log, folder))
    ...   len(histories), histories[0]["item"].tolist()
    (2, [1, 3])
  """
  tfds = _import()
  fingerprint = _fingerprint(log.events)
  present = _find_folder(pathlib.Path(folder))
  if present:
    if dict(_from_folder(present).info.metadata or {}).get("fingerprint") == fingerprint:
      return present
    raise DataError(f"{folder}: holds another log; give another folder, or remove it")
  rows = log.events.group_by("user", maintain_order=True).all()

  class Interactions(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
    """One record a user."""

    name = _NAME
    VERSION = tfds.core.Version(_VERSION)
    # No package of its own: no citation, tag or checksum files to look for.
    pkg_dir_path = pathlib.Path(__file__).parent
    code_path = None

    def _info(self):
      features = {name: _feature(tfds, rows.schema[name]) for name in rows.columns}
      return tfds.core.DatasetInfo(
        builder=self,
        description="An interaction log, one record a user.",
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(fingerprint=fingerprint),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(rows.iter_rows(named=True))

  builder = Interactions(data_dir=str(folder), file_format="array_record")
  with contextlib.redirect_stdout(sys.stderr):  # Standard output is for results.
    builder.download_and_prepare()
  out = pathlib.Path(builder.data_dir)
  if log.items is not None:
    log.items.write_parquet(out / "items.parquet")
  return out


def open_histories(folder: str | pathlib.Path) -> Any:
  """Random access to what `write` wrote: `len()` users, `[u]` the record of the u-th.

  Args:
    folder: the one given to `write`, or returned by it.

  Returns:
    A sequence of dicts of NumPy arrays, fit for `grain.MapDataset.source`.

  Raises:
    DataError: if there is no such data.
  """
  found = _find_folder(pathlib.Path(folder))
  if not found:
    raise DataError(f"{folder}: no prepared log; write it with kdjax.data.tfds.write")
  return next(_sources(_from_folder(found), str(folder)))


def _import() -> Any:
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Deprecations inside TFDS's own dependencies.
    import tensorflow_datasets
  return tensorflow_datasets


def _find_folder(path: pathlib.Path) -> pathlib.Path | None:
  """The folder with `dataset_info.json`: the path itself, or one or two levels below."""
  if not path.is_dir():
    return None
  for pattern in ("", "*/", "*/*/"):
    found = sorted(path.glob(f"{pattern}dataset_info.json"))
    if found:
      return found[-1].parent
  return None


def _from_folder(folder: pathlib.Path) -> Any:
  try:
    return _import().builder_from_directory(str(folder))
  except Exception as error:  # TFDS raises whatever its parsers raise.
    raise DataError(f"{folder}: not a prepared TFDS folder ({error}); prepare it again") from error


def _from_registry(spec: str) -> Any:
  tfds = _import()
  # Without TensorFlow, MovieLens and its like are in no registry until they are imported.
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    importlib.import_module("tensorflow_datasets.structured.movielens")
  try:
    builder = tfds.builder(spec, file_format="array_record")
  except Exception as error:  # TFDS raises many types for an unknown name, config or version.
    said = str(error).strip().split("\n")[0]
    raise DataError(
      f"tfds:{spec}: not a data set that tensorflow-datasets {tfds.__version__} can build here"
      f" ({said}); check name/config, or give a folder or file"
    ) from error
  if not builder.info.splits:
    raise DataError(
      f"tfds:{spec}: not prepared in {builder.data_dir}; on a machine with network run"
      f" tfds.builder({spec!r}, file_format='array_record').download_and_prepare() and copy the"
      " folder, or set TFDS_DATA_DIR to where it is"
    )
  return builder


def _sources(builder: Any, shown: str) -> Iterator[Any]:
  for split in builder.info.splits:
    try:
      yield builder.as_data_source(split=split)
    except Exception as error:  # As above; a tfrecord set without TensorFlow ends here.
      said = str(error).strip().split("\n")[0]
      raise DataError(
        f"{shown}: cannot be read by random access ({said}); prepare it with"
        " file_format='array_record'"
      ) from error


def _column(values: list[Any]) -> pl.Series:
  """A column of scalars, bytes or histories as polars holds it."""
  first = values[0] if values else 0
  if np.ndim(first):
    flat = _column(list(np.concatenate(values)))
    lengths = np.array([len(value) for value in values])
    owner = pl.Series(np.repeat(np.arange(len(values)), lengths))
    grouped = pl.DataFrame({"owner": owner, "value": flat}).group_by("owner", maintain_order=True)
    return grouped.agg("value")["value"]
  if isinstance(first, bytes):
    return pl.Series([value.decode() for value in values], dtype=pl.String)
  return pl.Series(np.asarray(values))


def _movies(item: pl.Series, features: Any, columns: Mapping[str, list[Any]]) -> pl.DataFrame:
  """MovieLens repeats title and genres in every event; one row an item is enough."""
  first = pl.DataFrame({"item": item}).with_row_index().unique("item", maintain_order=True)
  out = first.select("item")
  if "movie_title" in columns:
    titles = [columns["movie_title"][row] for row in first["index"]]
    out = out.with_columns(_column(titles).alias("title"))
  if "movie_genres" in columns:
    name = features["movie_genres"].feature.int2str
    genres = ["|".join(map(name, columns["movie_genres"][row])) for row in first["index"]]
    out = out.with_columns(pl.Series("genres", genres))
  return out


def _feature(tfds: Any, dtype: Any) -> Any:
  if isinstance(dtype, pl.List):
    if dtype.inner == pl.String:
      return tfds.features.Sequence(tfds.features.Text())
    return tfds.features.Tensor(shape=(None,), dtype=_number(dtype.inner))
  return tfds.features.Text() if dtype == pl.String else tfds.features.Scalar(_number(dtype))


def _number(dtype: Any) -> Any:
  return np.float32 if dtype.is_float() else np.int64


def _fingerprint(events: pl.DataFrame) -> str:
  """A digest of names and values, whatever machine or version computes it."""
  digest = hashlib.blake2b(digest_size=16)
  for name in events.columns:
    digest.update(name.encode())
    for start in range(0, events.height, _ROWS):
      values = events[name].slice(start, _ROWS)
      if values.dtype == pl.String:
        digest.update("\n".join(values).encode())
      else:
        digest.update(values.to_numpy().tobytes())
  return digest.hexdigest()
