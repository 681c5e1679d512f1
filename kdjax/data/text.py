"""Labelled texts from tables."""

import pathlib
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from kdjax.data.errors import DataError

TEXT_COLUMNS = ("text", "sentence", "review", "query", "title")
LABEL_COLUMNS = ("label", "labels", "class", "category", "sentiment")
_PARTS = {
  "train": ("train",),
  "valid": ("valid", "dev", "validation"),
  "test": ("test",),
}
_SUFFIXES = (".tsv", ".csv", ".parquet")


class Texts(NamedTuple):
  """Texts, each of one class.

  Attributes:
    texts: as read.
    labels: int32 `[N]`, from 0.
  """

  texts: Sequence[str]
  labels: np.ndarray

  def take(self, which: Sequence[int]) -> "Texts":
    """Some of them."""
    return Texts(tuple(self.texts[i] for i in which), self.labels[np.asarray(which, int)])


class TextDataset(NamedTuple):
  """Texts in three parts.

  Attributes:
    parts: by name, `train`, `valid` and `test`.
    classes: the name of every class, in the order of the labels.
    note: of the split, in words.
  """

  parts: dict[str, Texts]
  classes: tuple[str, ...]
  note: str


def load_texts(
  path: str | pathlib.Path,
  *,
  text_column: str = "",
  label_column: str = "",
  labels: bool = True,
  valid_fraction: float = 0.1,
  test_fraction: float = 0.1,
  seed: int = 0,
) -> TextDataset:
  """Reads texts and labels from a table, or from a folder of tables.

  A folder holds `train` and `test`, and perhaps `valid` (or `dev`), as .tsv, .csv or .parquet. What
  is not there is drawn from the end of a shuffle of `train`, or of the one file. Tables have a line
  of names, or two columns, text and label. Texts that are empty are left out.

  Args:
    path: the file or folder.
    text_column: its name; well-known names are found by themselves.
    label_column: as `text_column`.
    labels: whether there are any; without them all labels are 0, of one class without a name.
    valid_fraction: share of the training texts that validate, where no file does.
    test_fraction: share of them that test, where no file does.
    seed: of the shuffle.

  Returns:
    TextDataset; classes are sorted, as numbers where all are.

  Raises:
    DataError: naming the file and what is missing in it.
  """
  path = pathlib.Path(path)
  files = _files(path)
  tables = {
    part: _read_table(file, text_column, label_column, labels=labels)
    for part, file in files.items()
  }
  classes = _sorted_classes({label for _, found in tables.values() for label in found})
  number = {name: i for i, name in enumerate(classes)}
  parts = {
    part: Texts(texts, np.array([number[label] for label in found], np.int32))
    for part, (texts, found) in tables.items()
  }
  if len(classes) < 2 and labels:
    raise DataError(f"{path}: one class alone, {classes[0]!r}; there is nothing to tell apart")
  return _split(parts, classes, valid_fraction, test_fraction, seed)


def make_texts(count: int = 600, *, seed: int = 0) -> TextDataset:
  """Made-up reviews of two classes: words of praise or blame, some of them turned by "not".

  Example:
    >>> data = make_texts(50)
    >>> data.classes, len(data.parts["train"].texts)
    (('bad', 'good'), 40)
  """
  rng = random.Random(seed)
  words = {
    1: ("fine", "great", "lovely", "bright", "clever"),
    0: ("poor", "awful", "boring", "dull", "weak"),
  }
  plain = ("the", "film", "plot", "is", "and", "actor", "scene", "very", "quite", "story", "was")
  texts, labels = [], []
  for _ in range(count):
    label = rng.randrange(2)
    said = [rng.choice(plain) for _ in range(rng.randint(3, 12))]
    turned = rng.random() < 0.3
    word = rng.choice(words[label ^ turned])
    said.insert(rng.randrange(len(said) + 1), f"not {word}" if turned else word)
    texts.append(" ".join(said))
    labels.append(label)
  whole = Texts(tuple(texts), np.array(labels, np.int32))
  return _split({"train": whole}, ("bad", "good"), 0.1, 0.1, seed)


def _files(path: pathlib.Path) -> dict[str, pathlib.Path]:
  """The file of every part that has one."""
  if path.is_file():
    return {"train": path}
  found = {}
  for part, names in _PARTS.items():
    files = [path / f"{name}{suffix}" for name in names for suffix in _SUFFIXES]
    there = [file for file in files if file.exists()]
    if len(there) > 1:
      raise DataError(f"{path}: {' and '.join(file.name for file in there)} are both {part}")
    if there:
      found[part] = there[0]
  if "train" not in found:
    raise DataError(f"{path}: no train.tsv, train.csv or train.parquet in it")
  return found


def _read_table(
  file: pathlib.Path, text_column: str, label_column: str, *, labels: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Texts and labels, as they are written."""
  try:
    named = file.suffix == ".parquet" or _has_names(file, text_column)
    if file.suffix == ".parquet":
      table = pl.read_parquet(file)
    else:
      tab = file.suffix == ".tsv"
      table = pl.read_csv(
        file,
        separator="\t" if tab else ",",
        quote_char=None if tab else '"',
        has_header=named,
        infer_schema=False,
      )
  except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
    raise DataError(f"{file}: no table: {error}") from error
  if not named and table.width <= 2:
    text, label = table.columns[0], table.columns[-1]
  else:
    text = _column(file, table.columns, text_column, TEXT_COLUMNS, "--text_column")
    if labels:
      label = _column(file, table.columns, label_column, LABEL_COLUMNS, "--label_column")
  label_of = pl.col(label).cast(pl.String) if labels else pl.lit("")
  table = table.select(pl.col(text).cast(pl.String), label_of.alias("label of it"))
  table, label = table.filter(pl.col(text).str.strip_chars() != ""), "label of it"
  if table.is_empty():
    raise DataError(f"{file}: no texts in it")
  if missing := table[label].null_count():
    raise DataError(f"{file}: {missing} texts have no label")
  return tuple(table[text]), tuple(table[label])


def _has_names(file: pathlib.Path, text_column: str) -> bool:
  """Whether the first line names columns: a well-known name, or the one given, is among them."""
  with file.open(encoding="utf-8") as lines:
    first = lines.readline().strip("\ufeff\r\n")
  fields = [field.strip('" ').lower() for field in first.replace("\t", ",").split(",")]
  return bool({text_column.lower(), *TEXT_COLUMNS} & set(fields) - {""})


def _column(
  file: pathlib.Path, columns: list[str], asked: str, known: tuple[str, ...], flag: str
) -> str:
  names = {name.strip().lower(): name for name in columns}
  for name in [asked.lower()] if asked else known:
    if name in names:
      return names[name]
  wanted = asked or " or ".join(known)
  raise DataError(f"{file}: no column {wanted} among {', '.join(columns)}; name it by {flag}")


def _sorted_classes(found: set[str]) -> tuple[str, ...]:
  if all(name.lstrip("-").isdigit() for name in found):
    return tuple(sorted(found, key=int))
  return tuple(sorted(found))


def _split(
  parts: dict[str, Texts],
  classes: tuple[str, ...],
  valid_fraction: float,
  test_fraction: float,
  seed: int,
) -> TextDataset:
  """Draws the parts that are missing from the training texts."""
  whole, notes = parts["train"], []
  order = list(np.random.default_rng(seed).permutation(len(whole.texts)))
  for name, share in (("test", test_fraction), ("valid", valid_fraction)):
    if name not in parts:
      count = max(1, round(share * len(whole.texts)))
      parts[name] = whole.take(order[len(order) - count :])
      order = order[: len(order) - count]
      notes.append(f"{name} {share:.0%} of train")
  parts["train"] = whole.take(sorted(order)) if notes else whole
  if not parts["train"].texts:
    raise DataError(f"{len(whole.texts)} texts are too few for three parts")
  note = ", ".join(notes) or "parts as given"
  return TextDataset({name: parts[name] for name in ("train", "valid", "test")}, classes, note)
