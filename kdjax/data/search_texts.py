"""Texts that search is about, by their ids: documents and queries of BEIR and Cranfield."""

import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kdjax.data.errors import DataError

CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"
SMART_DOCUMENTS, SMART_QUERIES = "cran.all.1400", "cran.qry"


class NamedTexts(NamedTuple):
  """Texts by their ids.

  Attributes:
    ids: unique.
    texts: the title first.
    titles: "" where there is none.
  """

  ids: tuple[str, ...]
  texts: tuple[str, ...]
  titles: tuple[str, ...]

  def numbers(self) -> dict[str, int]:
    """Which text an id is of."""
    return {name: number for number, name in enumerate(self.ids)}


def load_documents(path: str | pathlib.Path) -> NamedTexts:
  """Reads the documents of a collection.

  Args:
    path: a folder of BEIR (`corpus.jsonl`) or of Cranfield (`cran.all.1400`), or a file of JSON
      lines like the first: `_id`, `text` and perhaps `title`.

  Returns:
    NamedTexts.

  Raises:
    DataError: naming file and line, what is wrong there, and what would be right.
  """
  path = pathlib.Path(path)
  if (path / SMART_DOCUMENTS).exists() and not (path / CORPUS).exists():
    return _smart_documents(path / SMART_DOCUMENTS)
  ids, records = _beir(path, CORPUS, "documents")
  titles = tuple(record.get("title") or "" for record in records)
  bodies = (record.get("text") or "" for record in records)
  texts = tuple(f"{a} {b}".strip() for a, b in zip(titles, bodies, strict=True))
  return NamedTexts(ids, texts, titles)


def load_queries(path: str | pathlib.Path) -> NamedTexts:
  """Reads the queries of a collection, as `load_documents`.

  Args:
    path: a folder of BEIR (`queries.jsonl`) or of Cranfield (`cran.qry`, whose queries are numbered
      by their position, from 1), or a file of JSON lines with `_id` and `text`.

  Returns:
    NamedTexts.

  Raises:
    DataError: as `load_documents`.
  """
  path = pathlib.Path(path)
  if (path / SMART_QUERIES).exists() and not (path / QUERIES).exists():
    asked = tuple(record.get(".W", "") for record in _smart_records(path / SMART_QUERIES))
    ids = tuple(str(number + 1) for number in range(len(asked)))
    return NamedTexts(ids, asked, ("",) * len(ids))
  ids, records = _beir(path, QUERIES, "queries")
  return NamedTexts(ids, tuple(record.get("text") or "" for record in records), ("",) * len(ids))


def lines_of(file: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Every line, and how to name it.

  Raises:
    DataError: if there is no such file, or it is not UTF-8.
  """
  try:
    with file.open(encoding="utf-8") as lines:
      for number, line in enumerate(lines):
        yield f"{file}, line {number + 1}", line
  except FileNotFoundError as error:
    raise DataError(f"{file}: no such file; the collection needs it") from error
  except UnicodeDecodeError as error:
    raise DataError(f"{file}: not UTF-8 text: {error}; convert it") from error


def _beir(path: pathlib.Path, name: str, what: str) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
  """The ids and records of a file of JSON lines, or of that of the folder."""
  if path.is_dir() and not (path / name).exists():
    smart = SMART_DOCUMENTS if name == CORPUS else SMART_QUERIES
    raise DataError(
      f"{path}: no {what} in it: give a folder with {name} (BEIR) or {smart} (Cranfield), or a "
      "file of JSON lines with _id and text"
    )
  file = path / name if path.is_dir() else path
  records = list(_json_records(file))
  return _unique((record["_id"] for record in records), file), records


def _smart_documents(file: pathlib.Path) -> NamedTexts:
  records = list(_smart_records(file))
  ids = _unique((record[".I"] for record in records), file)
  titles = tuple(record.get(".T", "") for record in records)
  # Most texts begin with the title already.
  texts = tuple(
    body if body.startswith(title) else f"{title} {body}".strip()
    for title, body in zip(titles, (record.get(".W", "") for record in records), strict=True)
  )
  return NamedTexts(ids, texts, titles)


def _json_records(file: pathlib.Path) -> Iterator[dict[str, Any]]:
  for place, line in lines_of(file):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except ValueError as error:
      raise DataError(f"{place}: no JSON: {error}; mend or remove the line") from error
    if not isinstance(record, dict) or "_id" not in record:
      raise DataError(f"{place}: an object with _id and text is needed there")
    for name in ("title", "text"):
      if not isinstance(record.get(name), str | None):
        raise DataError(f"{place}: {name} is no text; put it in quotes")
    yield record | {"_id": str(record["_id"])}


def _smart_records(file: pathlib.Path) -> Iterator[dict[str, str]]:
  """Records of `.I number` and fields `.T`, `.W`, ..., each on lines of its own."""
  record: dict[str, list[str]] = {}
  name = ""
  for place, line in lines_of(file):
    text = line.strip()
    if line.startswith(".I"):
      if record:
        yield {key: " ".join(words) for key, words in record.items()}
      record, name = {".I": [text[2:].strip()]}, ""
    elif len(text) == 2 and text[0] == "." and text[1].isupper() and record:
      record[name := text] = []
    elif text:
      if not name:
        raise DataError(f"{place}: {text[:40]!r} belongs to no field; a record begins with .I, .W")
      record[name].append(text)
  if not record:
    raise DataError(f"{file}: no record (.I number) in it")
  yield {key: " ".join(words) for key, words in record.items()}


def _unique(found: Iterable[str], file: pathlib.Path) -> tuple[str, ...]:
  names: dict[str, None] = {}
  for name in found:
    if name in names:
      raise DataError(f"{file}: the id {name!r} stands there twice; ids are unique")
    names[name] = None
  return tuple(names)
