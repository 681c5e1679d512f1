"""The prepared log, or texts, and their rows on disk, for every process to map: --prepared_dir."""

import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import polars as pl

from experiments.config import DataConfig
from kdjax import flags
from kdjax.data import interactions, mapped
from kdjax.data.errors import DataError
from kdjax.data.retrieval import Judged, SearchDataset
from kdjax.data.text import TextDataset, Texts
from kdjax.data.tokens import read_tokenizer
from kdjax.train import processes

MADE_FROM = "made_from.json"  # In a folder of texts: the data whose parts it has, and how split.
_PARTS = ("train", "valid", "test")


def dataset(config: DataConfig, make: Callable[[], interactions.Dataset]) -> interactions.Dataset:
  """The prepared log, made once and mapped from then on; made here without --prepared_dir.

  Raises:
    DataError: naming the folder, if it was made with other flags or from other files.
  """
  if not config.prepared_dir:
    return make()
  found = _once(config, "log", {}, lambda: _as_mapped(make()))
  parts = [
    interactions.Sequences(found.arrays[f"{part}_items"], found.arrays[f"{part}_offsets"])
    for part in _PARTS
  ]
  tables = found.tables
  return interactions.Dataset(
    interactions.Split(*parts),
    user_ids=tables["user_ids"]["id"],
    item_ids=tables["item_ids"]["id"],
    items=tables.get("items"),
    events=tables["events"],
    summary=dict(found.about["made"]),
  )


def labelled_texts(
  config: DataConfig, make: Callable[[], TextDataset], *, labels: bool
) -> TextDataset:
  """The texts that --dataset names, in the same way; as a column, read where they are looked at."""
  if not config.prepared_dir:
    return make()

  def content() -> mapped.Mapped:
    made = make()
    tables = {
      name: pl.DataFrame({"text": part.texts, "label": part.labels})
      for name, part in made.parts.items()
    }
    return mapped.Mapped({}, tables, {"classes": made.classes, "note": made.note})

  found = _once(config, "texts" if labels else "unlabelled", {}, content)
  parts = {
    name: Texts(_strings(table, "text"), table["label"].to_numpy())
    for name, table in found.tables.items()
  }
  made = found.about["made"]
  return TextDataset(parts, tuple(made["classes"]), made["note"])


def collection(config: DataConfig, make: Callable[[], SearchDataset]) -> SearchDataset:
  """The collection that --dataset names, as `labelled_texts`."""
  if not config.prepared_dir:
    return make()

  def content() -> mapped.Mapped:
    made = make()
    documents = {"text": made.documents, "title": made.titles, "id": made.document_ids}
    tables = {
      "documents": pl.DataFrame(documents),
      "queries": pl.DataFrame({"text": made.queries, "id": made.query_ids}),
    }
    tables |= {name: pl.DataFrame(part._asdict()) for name, part in made.parts.items()}
    return mapped.Mapped({}, tables, {"note": made.note})

  tables = (found := _once(config, "collection", {}, content)).tables
  documents, queries = tables["documents"], tables["queries"]
  return SearchDataset(
    documents=_strings(documents, "text"),
    titles=_strings(documents, "title"),
    document_ids=_strings(documents, "id"),
    queries=_strings(queries, "text"),
    query_ids=_strings(queries, "id"),
    parts={name: Judged(**{n.name: n.to_numpy() for n in tables[name]}) for name in _PARTS},
    note=found.about["made"]["note"],
  )


def _strings(table: pl.DataFrame, name: str) -> Sequence[str]:
  """A column, whose places are Python's integers and no others."""
  return cast(Sequence[str], table[name])


def tokenizer(config: DataConfig, learn: Callable[[], Any]) -> Any:
  """A `tokenizers.Tokenizer` learned from the training texts, in the same way."""
  if not config.prepared_dir:
    return learn()
  content = lambda: {"json": np.frombuffer(learn().to_str().encode(), np.uint8)}  # noqa: E731
  kept = rows(config, "tokenizer", {"vocab_size": config.vocab_size}, content)
  return read_tokenizer(kept["json"].tobytes().decode())


def rows(
  config: DataConfig,
  name: str,
  options: Mapping[str, Any],
  make: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Arrays made from the prepared log or texts, in the same way.

  Args:
    config: of the data.
    name: what they are called in --prepared_dir.
    options: what they depend on beside the log, JSON-ready.
    make: `() -> arrays`.
  """
  if not config.prepared_dir:
    return make()
  digest = hashlib.blake2b(json.dumps(options, sort_keys=True).encode(), digest_size=6).hexdigest()
  content = lambda: mapped.Mapped(make(), {}, {})  # noqa: E731
  return dict(_once(config, f"{name}-{digest}", options, content).arrays)


def rows_by_part(
  config: DataConfig,
  name: str,
  options: Mapping[str, Any],
  make: Callable[[], Mapping[str, Mapping[str, np.ndarray]]],
) -> dict[str, dict[str, np.ndarray]]:
  """As `rows`, where there are arrays by name of several parts, by name."""

  def joined() -> dict[str, np.ndarray]:
    return {f"{part}.{n}": x for part, arrays in make().items() for n, x in arrays.items()}

  found: dict[str, dict[str, np.ndarray]] = {}
  for joint, values in rows(config, name, options, joined).items():
    part, _, array = joint.partition(".")
    found.setdefault(part, {})[array] = values
  return found


def split_of(data: DataConfig) -> dict[str, Any]:
  """What decides which cases are in which part: of data made from others, that of those."""
  made_from = pathlib.Path(data.dataset) / MADE_FROM
  if made_from.exists():
    data = flags.load(DataConfig, made_from)
  values = dataclasses.asdict(data) | {"dataset": os.path.realpath(data.dataset)}
  kept = ("max_length", "all_windows", "items_path", "tokenizer", "vocab_size", "prepared_dir")
  searched = ("query_length", "mining", "mined_negatives", "pseudo_queries", "rerank")
  return {n: v for n, v in values.items() if n not in (*kept, *searched)}


def _once(
  config: DataConfig, name: str, options: Mapping[str, Any], make: Callable[[], mapped.Mapped]
) -> mapped.Mapped:
  folder = pathlib.Path(config.prepared_dir) / name
  about = json.loads(json.dumps({"log": _log(config), "options": dict(options)}))
  if not mapped.is_there(folder) and processes.is_first():
    made = make()
    mapped.save(folder, made._replace(about={**about, "made": dict(made.about)}))
  while not mapped.is_there(folder):  # When the first process fails, joining.py ends this one.
    time.sleep(0.2)
  found = mapped.open_folder(folder)
  if changed := [n for n in about["log"] if found.about["log"].get(n) != about["log"][n]]:
    raise DataError(
      f"--prepared_dir={config.prepared_dir} was made of other data ("
      + ", ".join(changed)
      + " changed); give another folder, or delete it"
    )
  return found


def _as_mapped(found: interactions.Dataset) -> mapped.Mapped:
  arrays: dict[str, np.ndarray] = {}
  for part in _PARTS:
    histories = getattr(found.split, part)
    arrays |= {f"{part}_items": histories.items, f"{part}_offsets": histories.offsets}
  tables = {
    "user_ids": found.user_ids.alias("id").to_frame(),
    "item_ids": found.item_ids.alias("id").to_frame(),
    "events": found.events,
  }
  if found.items is not None:
    tables["items"] = found.items
  return mapped.Mapped(arrays, tables, found.summary)


def _log(config: DataConfig) -> dict[str, Any]:
  """What decides the prepared log: flags, and size and time of the files."""
  values = {**split_of(config), "items_path": config.items_path}
  del values["objective"]
  path = pathlib.Path(config.dataset)
  if config.dataset == "synthetic" or not path.exists():
    return values
  files = [path, *([pathlib.Path(config.items_path)] if config.items_path else [])]
  if path.is_dir():
    files += sorted([*path.glob("*"), *path.glob("qrels/*")])
  stats = [(os.path.relpath(file, path), file.stat()) for file in files if file.is_file()]
  return {**values, "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]}
