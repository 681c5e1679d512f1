"""The search task: which documents answer a query (bi_encoder, cross_encoder)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import loss_terms, pairs, ranking, texts
from experiments import retrieval_rows as collection
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig
from experiments.loss_flags import LossSpec
from experiments.loss_view import DenseLogits, View, feature
from experiments.retrieval_rows import describe, load, tokenizer
from experiments.tasks import Judgement, Task, label_loss_of
from kdjax import losses, serve
from kdjax.metrics import catalog, ranks
from kdjax.models import pair_rows
from kdjax.models.linen import Sizes
from kdjax.reduce import totals
from kdjax.train.objective import Term
from kdjax.types import PAD, Apply, Array, Batch, FactoredLogits, Outputs, Params

__all__ = [
  "as_text",
  "describe",
  "judge",
  "judge_lists",
  "judged_queries",
  "load",
  "make_task",
  "model_sizes",
  "tokenizer",
]
METRICS = ("ndcg@10", "mrr@10", "recall@100")
CROSS = "cross_encoder"
Said = dict[str, np.ndarray]


def make_task(config: DataConfig, family: str) -> Task:
  """The search task over the collection that the flags name.

  Raises:
    DataError: naming what is wrong with the collection. ValueError: if the tokenizer cannot make
      pairs.
  """
  rows, tokens = collection.training_rows(config), collection.encoded(config)
  sizes: Sizes = {"vocab_size": tokenizer(config).get_vocab_size()}
  if family == CROSS:
    if not tokens.separators:
      raise ValueError(
        f"--tokenizer={config.tokenizer} puts no token between two texts; a cross_encoder needs one"
      )
    length = config.query_length + config.max_length + tokens.separators - 2
    sizes |= {"max_length": length, "head": "labels", "num_labels": 1}
    sizes |= {"separators": tokens.separators}
    both = (tokens.queries, tokens.documents)
    query, document = (x["tokens"][[np.argmax(x["segments"].sum(axis=1))]] for x in both)
    served = _joined(query, document, tokens.separators)
  else:
    sizes |= {"max_length": max(config.query_length, config.max_length), "head": "pool"}
    served = tokens.documents

  def flag_terms(distill: DistillConfig, fit: FitConfig, **counts: int) -> list[Term]:
    del fit
    makers = {**loss_terms.SEARCH, "in_batch_kl": _in_batch_kl}
    return loss_terms.make_terms(makers, make_view(len(rows.queries)), distill, **counts)

  candidates = tokens.documents["tokens"][rows.candidates]
  return Task(
    name="search",
    arrays={
      "query_tokens": tokens.queries["tokens"][rows.queries],
      "tokens": candidates,
      "candidates": rows.candidates,
      "relevant": rows.relevant,
    },
    num_examples=len(rows.queries),
    sizes=sizes,
    augment=lambda fit: None,
    label_term=lambda fit, weight: Term(
      label_loss_of(fit, "cross_entropy", ("cross_entropy",), family), label_loss, weight
    ),
    distill_term=pairs.distill_term,
    metric=METRICS[0],
    judge=functools.partial(judge, config, family),
    serve=lambda apply: lambda params, batch: apply(params, batch).logits,
    request=texts.make_request(served),
    flag_terms=flag_terms,
    run_teacher=functools.partial(run_teacher, config),
    lengths=np.count_nonzero(candidates != PAD, axis=-1).max(axis=1),
    cut=("tokens",),
  )


def as_text(config: ModelConfig) -> ModelConfig:
  """The flags of the text model whose params are those of a search model."""
  return dataclasses.replace(config, model="bert" if config.model == CROSS else config.encoder)


def model_sizes(config: ModelConfig, sizes: Sizes) -> Sizes:
  """The arguments of `make_bi_encoder` or `make_cross_encoder`.

  Raises:
    ValueError: naming the flag that does not fit.
  """
  separators = {name: sizes[name] for name in ("separators",) if name in sizes}
  own = {name: size for name, size in sizes.items() if name not in separators}
  found = texts.model_sizes(as_text(config), own)
  if config.model != CROSS:
    return {"encoder": config.encoder, **found}
  return separators | found | ({} if config.checkpoint else {"num_types": 2})


def candidate_scores(outputs: Outputs) -> tuple[Array, Array]:
  """Scores and the column of the right one: of a bi-encoder over the documents of all its queries.

  Those are the queries of a micro-batch, and on several devices under pmap of a device.

  Returns:
    float32 `[B, B * C]` and int32 `[B]`; of other models `[B, C]` and zeros.
  """
  features = outputs.features
  if not {"query", "documents"} <= set(features):
    return outputs.logits, jnp.zeros(len(outputs.logits), jnp.int32)
  query, documents = features["query"], features["documents"]
  scores = jnp.einsum("bd,ncd->bnc", query, documents, preferred_element_type=jnp.float32)
  count = documents.shape[1]
  return scores.reshape(len(query), -1).astype(jnp.float32), jnp.arange(len(query)) * count


def label_loss(student: Outputs, teacher: Outputs | None, batch: Batch) -> Any:
  """Cross-entropy of the row's relevant document; others that answer its query do not count."""
  del teacher
  scores, labels = candidate_scores(student)
  ids = jnp.broadcast_to(
    batch["candidates"].reshape(1, -1), (len(scores), batch["candidates"].size)
  )
  if ids.shape != scores.shape:
    ids = batch["candidates"]
  answers = jnp.any(ids[..., None] == batch["relevant"][:, None], axis=-1)
  own = jnp.arange(scores.shape[1])[None] == labels[:, None]
  return losses.cross_entropy_loss(scores, labels, support=own | ~answers, reduce_fn=totals)


def _in_batch_kl(spec: LossSpec, view: View) -> Term:
  """KL of the softmax over the documents of all queries of the batch: both are bi-encoders."""

  def term(student, teacher, batch):
    del batch
    scores = []
    for outputs, whose in ((student, "student"), (teacher, "teacher")):
      feature(outputs, "query", whose)
      scores.append(candidate_scores(outputs)[0])
    return losses.kl_loss(*scores, temperature=view.temperature, reduce_fn=totals)

  return Term(spec.term, term)


def make_view(num_rows: int) -> View:
  """How --distill_losses reads rows: the classes are the candidates, the relevant one first."""
  ones = lambda batch: jnp.ones((len(batch["candidates"]), 1), bool)  # noqa: E731
  return View(
    logits=lambda outputs, batch: DenseLogits(outputs.logits[:, None]),
    labels=lambda batch: jnp.zeros((len(batch["candidates"]), 1), jnp.int32),
    items=lambda batch: batch["candidates"][:, :1],
    where=ones,
    real=ones,
    num_rows=num_rows,
  )


def run_teacher(
  config: DataConfig,
  family: str,
  apply: Any,
  params: Params,
  *,
  embeddings: bool,
  once: Callable[[Callable[[], Said]], Said] = lambda make: make(),
) -> Said:
  """What a teacher says of the training rows: every text, or pair of texts, is read once.

  Args:
    config: of the rows.
    family: of the teacher.
    apply: of the teacher.
    params: its parameters.
    embeddings: whether a bi-encoder's features are wanted, too.
    once: gives what its argument makes, all that the teacher is run for: scores `[R, 1 + K]` of a
      cross-encoder; `query` `[Q', d]` and `documents` `[N', d]`, each text once, of a bi-encoder.

  Returns:
    `scores` float32 `[R, 1 + K]`; perhaps `query` `[R, d]` and `documents` `[R, 1 + K, d]`.
  """
  rows = collection.training_rows(config)
  if family == CROSS:
    pairs = rows.queries, rows.candidates
    return once(lambda: {"scores": score_pairs(config, apply, params, *pairs)})
  tokens = collection.encoded(config)
  asked, place = np.unique(rows.queries, return_inverse=True)
  read, at = np.unique(rows.candidates, return_inverse=True)
  texts = once(
    lambda: {
      "query": _embed(queries_of(apply), params, tokens.queries, asked),
      "documents": _embed(apply, params, tokens.documents, read),
    }
  )
  query, documents = texts["query"], texts["documents"]
  at = at.reshape(rows.candidates.shape)
  blocks = [slice(i, i + 1024) for i in range(0, len(place), 1024)]
  scores = [np.einsum("rd,rcd->rc", query[place[b]], documents[at[b]]) for b in blocks]
  said = {"scores": np.concatenate(scores)}
  return said | ({"query": query[place], "documents": documents[at]} if embeddings else {})


@functools.cache
def queries_of(apply: Any) -> Apply:
  """A bi-encoder's queries, scaled as its scores are; one function a model, compiled once."""

  def queries(params: Params, batch: Batch, *, key: Array | None = None) -> Outputs:
    tokens = batch["tokens"]
    # Of a document, one token, it must be given something.
    outputs = apply(params, {"query_tokens": tokens, "tokens": tokens[:, None, :1]}, key=key)
    return Outputs(outputs.features["query"], {})

  return queries


def _embed(
  apply: Apply, params: Params, rows: Mapping[str, np.ndarray], which: np.ndarray
) -> np.ndarray:
  return serve.encode_texts(apply, params, {name: x[which] for name, x in rows.items()})


def score_pairs(
  config: DataConfig, apply: Apply, params: Params, queries: np.ndarray, documents: np.ndarray
) -> np.ndarray:
  """A cross-encoder's scores of queries `[Q]` with documents `[Q, C]`: float32 `[Q, C]`."""
  tokens, found = collection.encoded(config), []
  for first in range(0, len(queries), collection.BLOCK):
    ids = documents[first : first + collection.BLOCK]
    asked = np.repeat(queries[first : first + collection.BLOCK], ids.shape[1])
    both = tokens.queries["tokens"][asked], tokens.documents["tokens"][ids.reshape(-1)]
    rows = _joined(*both, tokens.separators)
    found.append(serve.encode_texts(apply, params, rows).reshape(ids.shape))
  return np.concatenate(found)


def _joined(queries: np.ndarray, documents: np.ndarray, separators: int) -> dict[str, np.ndarray]:
  rows = pair_rows(jnp.asarray(queries), jnp.asarray(documents), separators=separators)
  return {name: np.asarray(values) for name, values in rows.items()}


def judged_queries(config: DataConfig, part: str) -> np.ndarray:
  """The queries of a part with a relevant document, in the order of its cases."""
  return np.unique(load(config).parts[part].relevant().queries)


def judge(config: DataConfig, family: str, apply: Any, params: Params, part: str) -> Judgement:
  """Every query of a part: a bi-encoder's by all documents, a cross-encoder's by BM25's best.

  How many those are is the scalar `reranked`.
  """
  dataset, tokens = load(config), collection.encoded(config)
  judged = dataset.parts[part].relevant()
  queries, counts = np.unique(judged.queries, return_counts=True)
  if family == CROSS:
    asked = [dataset.queries[query] for query in queries.tolist()]
    count = min(config.rerank, len(dataset.documents))
    _, ids = collection.bm25_lists(config, asked, count)
    found = judge_lists(config, part, score_pairs(config, apply, params, queries, ids), ids)
    return found._replace(scalars={"reranked": float(count)})
  query = jnp.asarray(_embed(queries_of(apply), params, tokens.queries, queries))
  every = np.arange(len(dataset.documents))
  logits = FactoredLogits(query, jnp.asarray(_embed(apply, params, tokens.documents, every)))
  none = np.zeros(0, np.int32), np.zeros(len(queries) + 1, np.int64)
  offsets = np.concatenate([[0], np.cumsum(counts)])
  ranked = catalog.rank_targets(query, logits.table, *none, judged.documents, offsets)
  best = catalog.top_k(query, logits.table, *none, k=min(ranking.LIST, len(every)))

  def scores_of(cases: np.ndarray) -> Array:
    return logits._replace(query=query[cases]).dense()

  return Judgement(_per_case(ranked, judged.gains), {}, best.ids, scores_of, None)


def judge_lists(config: DataConfig, part: str, scores: np.ndarray, ids: np.ndarray) -> Judgement:
  """The judgement of lists of candidates; other documents are not found.

  For comparisons with other models, those stand at the score of the last candidate.
  """
  dataset = load(config)
  judged = dataset.parts[part].relevant()
  counts = np.unique(judged.queries, return_counts=True)[1]
  offsets = np.concatenate([[0], np.cumsum(counts)])
  num_items = len(dataset.documents)
  found = ranks.rank_lists(scores, ids, judged.documents, offsets)
  order = np.argsort(-scores, axis=1, kind="stable")[:, : ranking.LIST]

  def scores_of(cases: np.ndarray) -> Array:
    own = scores[cases]
    every = np.repeat(own.min(axis=1, keepdims=True), num_items, axis=1)
    np.put_along_axis(every, ids[cases], own, axis=1)
    return jnp.asarray(every)

  best = np.take_along_axis(ids, order, axis=1)
  return Judgement(_per_case(found, judged.gains), {}, best, scores_of, None)


def _per_case(found: ranks.Ranks, gains: np.ndarray) -> dict[str, np.ndarray]:
  every = ranks.per_user(found, ks=(10, 100), gains=gains)
  return {name: every[name] for name in METRICS}
