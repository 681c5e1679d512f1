"""Builds the exact index of a bi-encoder over documents, and finds the best for queries.

python -m experiments.find --workdir=runs/index --model=runs/small --documents=path/to/corpus.jsonl
python -m experiments.find --workdir=runs/index --model=runs/small \
  --documents=path/to/corpus.jsonl --query="boundary layer of a flat plate" --k=5

The documents are encoded once: a workdir that holds their index is searched as it is, by whatever
--query or --queries. What is found goes to `found.trec` (or `.jsonl`); for --query it is printed.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, families, files, problems, retrieval, stored, texts
from kdjax import quant, serve, store
from kdjax.data.errors import DataError
from kdjax.data.search_texts import NamedTexts, load_documents, load_queries
from kdjax.data.tokens import load_tokenizer
from kdjax.flags import option
from kdjax.metrics import catalog

INDEX_FILE = "index.safetensors"
PRINTED = 72  # Letters of a document that are shown.


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.find."""

  model: str = option("", "Workdir of a bi_encoder.")
  documents: str = option(
    "",
    "What is searched: a folder of BEIR or Cranfield, or a file of JSON lines (_id, text, perhaps "
    "title); the collection that the model was trained on when not given.",
  )
  queries: str = option(
    "",
    "Queries: such a folder, or such a file. Without this and --query the index is made, no more.",
  )
  query: str = option("", "One query, as text; the answer is printed.")
  k: int = option(10, "How many documents of each query, best first.", lower=1)
  format: Literal["trec", "jsonl"] = option(
    "trec", "Of what is found: TREC's six columns, or an object a query."
  )
  int8: bool = option(
    False, "Keep the index in int8 with a scale a document: about a quarter of the bytes."
  )


class Index(NamedTuple):
  """Documents by the embeddings that queries are multiplied with.

  Attributes:
    ids: of the documents.
    table: float32 `[N, d]`, or a `QTensor`.
  """

  ids: tuple[str, ...]
  table: Any


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Makes the index where there is none; writes, or prints, what it finds."""
  if config.query and config.queries:
    raise ValueError("--query and --queries: give one of the two")
  saved = stored.load_model(config.model, flag="--model")
  if saved.family != "bi_encoder":
    raise ValueError(
      f"--model={config.model} is a {saved.family}, which embeds no documents; give a bi_encoder"
    )
  folder = pathlib.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  documents = _documents(config, saved)
  index = open_index(folder / INDEX_FILE, config, saved, documents)
  result: dict[str, Any] = {
    "job": "find",
    "documents": len(index.ids),
    "width": int(index.table.shape[1]),
    "bytes": (folder / INDEX_FILE).stat().st_size,
  }
  print(
    "index of {documents:,} documents, {width} wide, {bytes:,} bytes".format(**result), flush=True
  )
  if not (config.query or config.queries):
    return result
  asked = NamedTexts(("query",), (config.query,), ("",))
  if config.queries:
    asked = _some(load_queries(config.queries), f"--queries={config.queries}")
  found = search(index, embed_queries(saved, asked.texts), k=config.k)
  if config.query:
    for place, (score, row) in enumerate(zip(found.scores[0], found.ids[0], strict=True)):
      said = " ".join(documents.texts[row].split())[:PRINTED]
      print(f"{place + 1:3d}  {score:8.4f}  {index.ids[row]}  {said}", flush=True)
  file = folder / f"found.{config.format}"
  lines = (_trec if config.format == "trec" else _json_lines)(asked, index, found)
  with files.whole(file) as part:
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
  return result | {"queries": len(asked.ids), "k": found.ids.shape[1], "file": file.name}


def open_index(
  path: pathlib.Path, config: Config, saved: stored.SavedModel, documents: NamedTexts
) -> Index:
  """The index of a file, or a new one that is left there.

  Raises:
    WorkdirError: naming the file, if it is of another model, other documents or another type.
    StoreError: if it is damaged.
  """
  about = {
    "model": stored.fingerprint(saved),
    "documents": hashlib.blake2b(json.dumps(documents).encode(), digest_size=16).hexdigest(),
    "int8": str(config.int8),
  }
  if path.exists():
    found, before = store.load_params(path)
    if changed := [name for name, value in about.items() if before.get(name) != value]:
      raise stored.WorkdirError(
        f"{path} is an index of other flags or files ({', '.join(f'--{n}' for n in changed)}); use "
        "those, another --workdir, or delete the file"
      )
    return Index(documents.ids, found["embedding"])
  print(f"encoding {len(documents.ids):,} documents", flush=True)
  made = jnp.asarray(_embed(saved, documents.texts, saved.data.max_length, queries=False))
  table = quant.quantize(made, axis=-1) if config.int8 else made
  store.save_params(path, {"embedding": table}, metadata=about)
  return Index(documents.ids, table)


def search(index: Index, queries: np.ndarray, *, k: int) -> catalog.TopK:
  """The k best documents of each query `[Q, d]`, exactly, in blocks; all where there are fewer."""
  none = np.zeros(0, np.int32), np.zeros(len(queries) + 1, np.int64)
  return catalog.top_k(queries, index.table, *none, k=min(k, len(index.ids)))


def embed_queries(saved: stored.SavedModel, asked: tuple[str, ...]) -> np.ndarray:
  """Queries as scores take them: float32 `[Q, d]`."""
  return _embed(saved, asked, saved.data.query_length, queries=True)


def _embed(
  saved: stored.SavedModel, found: tuple[str, ...], length: int, *, queries: bool
) -> np.ndarray:
  apply: Any = families.make_model(saved.family, saved.sizes).apply
  rows = texts.encode_alone(_tokenizer(saved), found, max_length=length)
  params = jax.tree.map(jnp.asarray, saved.params)
  return serve.encode_texts(retrieval.queries_of(apply) if queries else apply, params, rows)


def _tokenizer(saved: stored.SavedModel) -> Any:
  """That of the run; where it has none (one that was quantized), that of its data."""
  path = saved.folder / texts.TOKENIZER_FILE
  return load_tokenizer(path) if path.exists() else problems.tokenizer_of(saved.data, saved.family)


def _documents(config: Config, saved: stored.SavedModel) -> NamedTexts:
  if config.documents:
    return _some(load_documents(config.documents), f"--documents={config.documents}")
  dataset = retrieval.load(saved.data)
  return NamedTexts(*map(tuple, (dataset.document_ids, dataset.documents, dataset.titles)))


def _some(found: NamedTexts, flag: str) -> NamedTexts:
  if not found.ids:
    raise DataError(f"{flag}: there is not one text in it")
  return found


def _trec(asked: NamedTexts, index: Index, found: catalog.TopK) -> Iterator[str]:
  """Query, Q0, document, rank from 1, score, and the name of the run."""
  for name in (*asked.ids, *index.ids):
    if not name or any(letter.isspace() for letter in name):
      raise DataError(f"the id {name!r} does not fit TREC's columns; give --format=jsonl")
  for query, scores, rows in zip(asked.ids, found.scores, found.ids, strict=True):
    for place, (score, row) in enumerate(zip(scores, rows, strict=True)):
      yield f"{query} Q0 {index.ids[row]} {place + 1} {score:.6f} kdjax"


def _json_lines(asked: NamedTexts, index: Index, found: catalog.TopK) -> Iterator[str]:
  for query, text, scores, rows in zip(*asked[:2], found.scores, found.ids, strict=True):
    best = [{"_id": index.ids[r], "score": float(s)} for s, r in zip(scores, rows, strict=True)]
    yield json.dumps({"_id": query, "text": text, "found": best}, ensure_ascii=False)


if __name__ == "__main__":
  cli.main(Config, run, None)
