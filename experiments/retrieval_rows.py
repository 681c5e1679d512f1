"""What search learns from: a collection as tokens, and rows of a query and its candidates."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import prepared
from experiments.config import DataConfig
from experiments.texts import encode_alone, fingerprint
from kdjax.data.bm25 import make_bm25
from kdjax.data.errors import DataError
from kdjax.data.retrieval import SearchDataset, load_search, make_search
from kdjax.data.tokens import load_tokenizer, train_tokenizer
from kdjax.types import PAD

MINED = 50  # Of a query's best by BM25 that do not answer it, from which negatives are drawn.
BLOCK = 64  # Queries that are scored at once.


@functools.lru_cache(maxsize=2)
def load(config: DataConfig) -> SearchDataset:
  """The collection that --dataset names: a folder of BEIR or of Cranfield, or `synthetic`.

  Raises:
    DataError: naming the file and the mend.
  """
  return prepared.collection(config, lambda: _read(config))


def _read(config: DataConfig) -> SearchDataset:
  if config.dataset == "synthetic":
    return make_search(
      config.synthetic_items, num_queries=config.synthetic_users, seed=config.data_seed
    )
  return load_search(
    config.dataset,
    fold=config.fold,
    valid_fraction=config.valid_fraction,
    seed=config.data_seed,
  )


@functools.lru_cache(maxsize=2)
def tokenizer(config: DataConfig) -> Any:
  """That of --tokenizer, or one learned from the documents and the training queries."""
  if config.tokenizer:
    return load_tokenizer(config.tokenizer)

  def learned() -> Any:
    dataset = load(config)
    asked = [dataset.queries[query] for query in np.unique(dataset.parts["train"].queries).tolist()]
    return train_tokenizer([*dataset.documents, *asked], vocab_size=config.vocab_size)

  return prepared.tokenizer(config, learned)


def describe(dataset: SearchDataset) -> str:
  """One line: how many documents, and how many queries and judgements in which part."""
  counts = ", ".join(
    f"{name} {len(np.unique(part.queries)):,} ({len(part.relevant().queries):,} relevant)"
    for name, part in dataset.parts.items()
  )
  return f"search | documents {len(dataset.documents):,} | queries {counts} | {dataset.note}"


@functools.lru_cache(maxsize=2)
def _bm25(config: DataConfig) -> Callable[[Sequence[str]], np.ndarray]:
  return make_bm25(load(config).documents)


def bm25_lists(
  config: DataConfig, queries: Sequence[str], count: int
) -> tuple[np.ndarray, np.ndarray]:
  """The best `count` documents of each query by BM25: scores `[Q, C]` and int32 ids `[Q, C]`."""
  score, found = _bm25(config), []
  for first in range(0, len(queries), BLOCK):
    scores = score(queries[first : first + BLOCK])
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :count].astype(np.int32)
    found.append((np.take_along_axis(scores, ids, axis=1), ids))
  scores, ids = (np.concatenate(parts) for parts in zip(*found, strict=True))
  return scores, ids


class Rows(NamedTuple):
  """What is learned from.

  Attributes:
    queries: int32 `[R]`, the query of each row, of `asked`.
    candidates: int32 `[R, 1 + K]`, a document that answers it, and K that do not.
    relevant: int32 `[R, M]`, all documents known to answer it, PAD after.
  """

  queries: np.ndarray
  candidates: np.ndarray
  relevant: np.ndarray


def asked(config: DataConfig) -> list[str]:
  """The texts of all queries: those of the collection, and then pseudo queries."""
  dataset = load(config)
  return [*dataset.queries, *(dataset.titles[document] for document in _titled(config))]


def _titled(config: DataConfig) -> list[int]:
  """The documents whose titles are asked for."""
  titles = load(config).titles if config.pseudo_queries else ()
  return [document for document, title in enumerate(titles) if title]


@functools.lru_cache(maxsize=2)
def training_rows(config: DataConfig) -> Rows:
  """A row of each pair of a training query and a relevant document, with its drawn negatives.

  Raises:
    DataError: if a query has too few documents that do not answer it.
  """
  options = {
    name: getattr(config, name) for name in ("pseudo_queries", "mined_negatives", "mining")
  }
  return Rows(**prepared.rows(config, "pairs", options, lambda: _draw(config)._asdict()))


def _draw(config: DataConfig) -> Rows:
  dataset, rng = load(config), np.random.default_rng(config.data_seed)
  judged = dataset.parts["train"].relevant()
  answers: dict[int, list[int]] = {}
  for query, document in zip(judged.queries.tolist(), judged.documents.tolist(), strict=True):
    answers.setdefault(query, []).append(document)
  first = len(dataset.queries)
  answers |= {first + i: [document] for i, document in enumerate(_titled(config))}
  texts = asked(config)
  named, count = list(answers), config.mined_negatives
  size = max(map(len, answers.values()))
  pool = max(MINED, count)
  if config.mining == "bm25":
    _, near = bm25_lists(config, [texts[query] for query in named], pool + size)
  else:
    pool = len(dataset.documents)
    near = np.broadcast_to(np.arange(pool), (len(named), pool))
  queries, candidates = [], []
  for query, best in zip(named, near, strict=True):
    others = best[~np.isin(best, answers[query])][:pool]
    if len(others) < count:
      raise DataError(
        f"--mined_negatives={count}: there are {len(others)} documents that do not answer "
        f"{texts[query]!r}; ask for fewer"
      )
    for document in answers[query]:
      queries.append(query)
      candidates.append([document, *rng.choice(others, count, replace=False)])
  relevant = np.full([len(queries), size], PAD, np.int32)
  for row, query in enumerate(queries):
    relevant[row, : len(answers[query])] = answers[query]
  return Rows(np.array(queries, np.int32), np.array(candidates, np.int32), relevant)


class Encoded(NamedTuple):
  """The collection as tokens: rows of `kdjax.data.tokens.encode` without types.

  Attributes:
    documents: `[N, L]` arrays.
    queries: `[Q, Lq]` arrays, of `asked`.
    separators: how many tokens stand between the two texts of a pair.
  """

  documents: dict[str, np.ndarray]
  queries: dict[str, np.ndarray]
  separators: int


@functools.lru_cache(maxsize=2)
def encoded(config: DataConfig) -> Encoded:
  """All documents and queries as tokens."""
  words = tokenizer(config)

  def make() -> dict[str, dict[str, np.ndarray]]:
    documents = load(config).documents
    return {
      "documents": encode_alone(words, documents, max_length=config.max_length),
      "queries": encode_alone(words, asked(config), max_length=config.query_length),
    }

  named = ("pseudo_queries", "max_length", "query_length")
  options = {name: getattr(config, name) for name in named} | {"tokenizer": fingerprint(words)}
  found = prepared.rows_by_part(config, "tokens", options, make)
  added = [words.num_special_tokens_to_add(pair) for pair in (False, True)]
  return Encoded(**found, separators=added[1] - added[0])
