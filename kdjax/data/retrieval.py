"""Collections for search: documents, queries, and who judged what relevant to what."""

import pathlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.errors import DataError
from kdjax.data.search_texts import NamedTexts, lines_of, load_documents, load_queries

FOLDS = 5
_QRELS = {"train": ("train",), "valid": ("dev", "valid", "validation"), "test": ("test",)}


class Judged(NamedTuple):
  """Judgements of the queries of one part, in the order of queries, then of documents.

  Attributes:
    queries: int32 `[J]`, which query.
    documents: int32 `[J]`, which document; every pair stands here once.
    gains: float32 `[J]`, how relevant it is: 0 for not at all, the more the better.
  """

  queries: np.ndarray
  documents: np.ndarray
  gains: np.ndarray

  def relevant(self) -> "Judged":
    """Those with a gain above 0."""
    return Judged(*(x[self.gains > 0] for x in self))


class SearchDataset(NamedTuple):
  """A collection in three parts, which share the documents and no query.

  Attributes:
    documents: their texts, the title first.
    titles: their titles, "" where there is none.
    document_ids: as the collection has them.
    queries: their texts.
    query_ids: as the collection has them.
    parts: by name, `train`, `valid` and `test`.
    note: of the split, in words.
  """

  documents: Sequence[str]
  titles: Sequence[str]
  document_ids: Sequence[str]
  queries: Sequence[str]
  query_ids: Sequence[str]
  parts: dict[str, Judged]
  note: str


def load_search(
  path: str | pathlib.Path, *, fold: int = 0, valid_fraction: float = 0.1, seed: int = 0
) -> SearchDataset:
  """Reads a folder of BEIR, or of Cranfield's SMART files.

  BEIR: `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`) and tables
  `qrels/train.tsv`, `dev.tsv`, `test.tsv` (query, document, gain). Without `dev.tsv`, queries of
  `train.tsv` are drawn to validate.

  Cranfield: `cran.all.1400`, `cran.qry` and `cranqrel`, where queries are numbered by their
  position, from 1, and grades run from 1, the best, to 4; -1 is not relevant. Gains are 4 to 1,
  and 0.

  A collection whose judgements are not split (Cranfield, or `test.tsv` alone) is split by folds:
  queries whose number modulo 5 is `fold` test, the next fold validates, the other three train.

  Args:
    path: the folder.
    fold: from 0 to 4, where folds are made.
    valid_fraction: share of the training queries that validate, where no file says which.
    seed: of that draw.

  Returns:
    SearchDataset.

  Raises:
    DataError: naming file and line, what is wrong there, and what would be right.
  """
  path = pathlib.Path(path)
  if not 0 <= fold < FOLDS:
    raise DataError(f"fold {fold}: folds are numbered 0 to {FOLDS - 1}; mend --fold")
  if (path / "corpus.jsonl").exists():
    return _load_beir(path, fold, valid_fraction, seed)
  if (path / "cranqrel").exists():
    return _load_cranfield(path, fold)
  raise DataError(
    f"{path}: no collection: a folder with corpus.jsonl, queries.jsonl and qrels (BEIR), or with "
    "cran.all.1400, cran.qry and cranqrel (Cranfield)"
  )


def make_search(count: int = 200, *, num_queries: int = 150, seed: int = 0) -> SearchDataset:
  """A made-up collection: queries name two topics of a document, half of them by another word.

  A document of both topics is relevant, with gain 2 where its title names one of them, else 1.

  Args:
    count: documents, at least 20.
    num_queries: at least 10; by turns two thirds train, a sixth validates, a sixth tests.
    seed: of all draws.

  Example:
    >>> data = make_search(50, num_queries=30)
    >>> len(data.documents), [len(np.unique(part.queries)) for part in data.parts.values()]
    (50, [20, 5, 5])
  """
  rng = random.Random(seed)
  topics = range(max(6, count // 8))
  plain = ("of", "the", "on", "some", "flow", "study", "results", "method", "for", "with", "large")
  chosen = [rng.sample(topics, 3) for _ in range(count)]
  titles = [f"a {rng.choice(plain)} word{own[0]}" for own in chosen]
  bodies = []
  for own in chosen:
    said = [f"word{topic}" for topic in own] + rng.choices(plain, k=rng.randint(4, 12))
    rng.shuffle(said)
    bodies.append(" ".join(said))
  queries, rows = [], []
  for query in range(num_queries):
    asked = rng.sample(rng.choice(chosen), 2)
    queries.append(" ".join(f"{rng.choice(('word', 'name'))}{topic}" for topic in asked))
    rows += [
      (query, document, 2.0 if own[0] in asked else 1.0)
      for document, own in enumerate(chosen)
      if set(asked) <= set(own)
    ]
  turn = {"train": (0, 1, 2, 3), "valid": (4,), "test": (5,)}
  parts = {name: _judged(r for r in rows if r[0] % 6 in which) for name, which in turn.items()}
  texts = tuple(f"{title} {body}" for title, body in zip(titles, bodies, strict=True))
  ids = tuple(f"d{i}" for i in range(count)), tuple(f"q{i}" for i in range(num_queries))
  return SearchDataset(texts, tuple(titles), ids[0], tuple(queries), ids[1], parts, "by turns")


def _load_cranfield(path: pathlib.Path, fold: int) -> SearchDataset:
  documents, queries = load_documents(path), load_queries(path)
  ids, numbers = documents.numbers(), queries.numbers()
  rows, file = [], path / "cranqrel"
  for place, line in lines_of(file):
    fields = line.split()
    if not fields:
      continue
    if len(fields) != 3 or fields[2] not in ("-1", "1", "2", "3", "4"):
      raise DataError(
        f"{place}: {line.strip()!r}: not a query, a document and a grade (1-4, or -1)"
      )
    gain = 0 if fields[2] == "-1" else 5 - int(fields[2])
    rows.append((*_look_up(fields, numbers, ids, place), gain))
  judged = _judged(rows)
  parts, note = _folds(judged, {i: i + 1 for i in range(len(queries.ids))}, fold)
  return _joined(documents, queries, parts, note)


def _load_beir(path: pathlib.Path, fold: int, valid_fraction: float, seed: int) -> SearchDataset:
  documents, queries = load_documents(path), load_queries(path)
  ids, numbers = documents.numbers(), queries.numbers()
  files = {
    part: path / "qrels" / f"{name}.tsv"
    for part, names in _QRELS.items()
    for name in names
    if (path / "qrels" / f"{name}.tsv").exists()
  }
  if "test" not in files:
    raise DataError(f"{path / 'qrels'}: no test.tsv in it; there must be one, and best a train.tsv")
  parts = {part: _judged(_qrels(file, numbers, ids)) for part, file in files.items()}
  if "train" not in parts:
    parts, note = _folds(parts["test"], {i: i for i in range(len(numbers))}, fold)
  elif "valid" not in parts:
    parts, note = _draw_valid(parts, valid_fraction, seed)
  else:
    note = "parts as given"
  return _joined(documents, queries, parts, note)


def _joined(
  documents: NamedTexts, queries: NamedTexts, parts: dict[str, Judged], note: str
) -> SearchDataset:
  return SearchDataset(
    documents.texts, documents.titles, documents.ids, queries.texts, queries.ids, parts, note
  )


def _qrels(
  file: pathlib.Path, numbers: Mapping[str, int], ids: Mapping[str, int]
) -> Iterator[tuple[int, int, float]]:
  for row, (place, line) in enumerate(lines_of(file)):
    fields = line.rstrip("\r\n").split("\t")
    if not line.strip() or (row == 0 and fields[-1].strip() == "score"):
      continue
    try:
      query, document, gain = fields[0], fields[1], float(fields[2])
    except (IndexError, ValueError) as error:
      raise DataError(
        f"{place}: {line.strip()!r}: not a query, a document and a gain with tabs between"
      ) from error
    yield *_look_up((query, document), numbers, ids, place), max(gain, 0.0)


def _look_up(
  fields: Iterable[str], numbers: Mapping[str, int], ids: Mapping[str, int], place: str
) -> tuple[int, int]:
  query, document, *_ = fields
  for name, known, of in (("query", numbers, query), ("document", ids, document)):
    if of not in known:
      raise DataError(f"{place}: no {name} {of!r} in the collection; remove the line or add it")
  return numbers[query], ids[document]


def _judged(rows: Iterable[tuple[int, int, float]]) -> Judged:
  """Sorted; of a pair that was judged more than once the greatest gain stays."""
  gains: dict[tuple[int, int], float] = {}
  for query, document, gain in rows:
    gains[query, document] = max(gain, gains.get((query, document), 0.0))
  ordered = sorted(gains)
  pairs = np.array(ordered, np.int32).reshape(-1, 2)
  return Judged(pairs[:, 0], pairs[:, 1], np.array([gains[pair] for pair in ordered], np.float32))


def _pick(judged: Judged, which: Callable[[np.ndarray], np.ndarray]) -> Judged:
  return Judged(*(x[which(judged.queries)] for x in judged))


def _folds(judged: Judged, numbers: Mapping[int, int], fold: int) -> tuple[dict[str, Judged], str]:
  """The parts by the queries' numbers modulo FOLDS."""
  folds = np.array([numbers[query] % FOLDS for query in range(len(numbers))])
  valid = (fold + 1) % FOLDS
  parts = {
    "train": _pick(judged, lambda q: (folds[q] != fold) & (folds[q] != valid)),
    "valid": _pick(judged, lambda q: folds[q] == valid),
    "test": _pick(judged, lambda q: folds[q] == fold),
  }
  if missing := [name for name, part in parts.items() if not len(part.relevant().queries)]:
    raise DataError(f"no judged query for {', '.join(missing)}: too few for {FOLDS} folds")
  return parts, f"fold {fold} of queries modulo {FOLDS} tests, fold {valid} validates"


def _draw_valid(
  parts: Mapping[str, Judged], valid_fraction: float, seed: int
) -> tuple[dict[str, Judged], str]:
  queries = np.unique(parts["train"].queries)
  count = max(1, round(valid_fraction * len(queries)))
  if count >= len(queries):
    raise DataError(f"{len(queries)} training queries are too few to draw {count} that validate")
  drawn = np.random.default_rng(seed).permutation(queries)[:count]
  valid = _pick(parts["train"], lambda q: np.isin(q, drawn))
  train = _pick(parts["train"], lambda q: ~np.isin(q, drawn))
  found = {"train": train, "valid": valid, "test": parts["test"]}
  return found, f"valid {valid_fraction:.0%} of the training queries"
