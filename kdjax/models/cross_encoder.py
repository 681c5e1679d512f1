"""A cross-encoder: a BERT that reads query and document together, and gives one score."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from kdjax.models.bert import bert_axes, bert_sizes, make_bert
from kdjax.models.linen import Sizes
from kdjax.types import Array, Batch, Model, Outputs, Params


def pair_rows(query_tokens: Array, tokens: Array, *, separators: int = 1) -> dict[str, Array]:
  """Rows of "query [SEP] document" from the tokens of each alone.

  Each is as a tokenizer marks a single text, such as `[CLS] query [SEP]`. The document's first
  token goes, and more separators are repetitions of the query's last token: what the tokenizers of
  BERT (one separator) and RoBERTa (two) make of a pair.

  Args:
    query_tokens: int `[N, Q]`, -1 where a text has ended, at least one token each.
    tokens: int `[N, L]`, likewise.
    separators: at least 1.

  Returns:
    int32 `[N, Q + L + separators - 2]` each: `tokens`, `segments`, `positions`, and `types`, 1 in
    the document.

  Example:
    >>> rows = pair_rows(jnp.array([[2, 7, 3, -1]]), jnp.array([[2, 8, 9, 3]]))
    >>> rows["tokens"].tolist(), rows["types"].tolist()
    ([[2, 7, 3, 8, 9, 3, -1]], [[0, 0, 0, 1, 1, 1, 0]])
  """
  length = query_tokens.shape[1] + tokens.shape[1] + separators - 2
  size = jnp.sum(query_tokens >= 0, axis=1, keepdims=True)
  places = jnp.arange(length)[None]
  from_query = jnp.take_along_axis(query_tokens, jnp.minimum(places, size - 1), axis=1)
  place = places - size - separators + 2  # In the document, whose token 0 is left out.
  own = jnp.take_along_axis(tokens, jnp.clip(place, 0, tokens.shape[1] - 1), axis=1)
  there = (place >= 1) & (place < tokens.shape[1]) & (own >= 0)
  joined = jnp.where(place < 1, from_query, jnp.where(there, own, -1)).astype(jnp.int32)
  return {
    "tokens": joined,
    "segments": (joined >= 0).astype(jnp.int32),
    "positions": jnp.broadcast_to(places, joined.shape).astype(jnp.int32),
    "types": there.astype(jnp.int32),
  }


def make_cross_encoder(*, separators: int = 1, **sizes: Any) -> Model:
  """A BERT with one label over pairs of a query and a document, as a pair of pure functions.

  Reads int `query_tokens` `[B, Q]` and `tokens` `[B, C, L]`, C documents a query, -1 where a text
  has ended, and gives `logits` float32 `[B, C]`. Feature: `pairs` `[B, C, d]`, what the classifier
  multiplies. A batch without `query_tokens` is one of rows as of `pair_rows`, and is given to the
  BERT as it is: its `logits` are `[N, 1]`. The params are the BERT's own.

  Args:
    separators: see `pair_rows`.
    sizes: the fields of `BERT`; the head is `labels`, of one.

  Returns:
    Model.

  Raises:
    ValueError: if another head, or more than one label, is asked for. TypeError: if a size has
      another name.

  Reference:
    R. Nogueira, K. Cho, Passage Re-ranking with BERT, 2019, arXiv:1901.04085.
  """
  if (sizes.get("head", "labels"), sizes.get("num_labels", 1)) != ("labels", 1):
    raise ValueError("a cross-encoder has the head labels, of one label")
  bert = make_bert(**_of_bert(sizes))
  types = sizes.get("num_types", 2) > 1

  def flat_pairs(batch: Batch) -> dict[str, Array]:
    tokens = batch["tokens"]
    queries = jnp.repeat(batch["query_tokens"], tokens.shape[1], axis=0)
    rows = pair_rows(queries, tokens.reshape(-1, tokens.shape[-1]), separators=separators)
    return rows if types else {name: x for name, x in rows.items() if name != "types"}

  def init(key: Array, batch: Batch) -> Params:
    return bert.init(key, flat_pairs(batch) if "query_tokens" in batch else batch)

  def apply(params: Params, batch: Batch, *, key: Array | None = None) -> Outputs:
    if "query_tokens" not in batch:
      rows = batch if types else {name: x for name, x in batch.items() if name != "types"}
      return bert.apply(params, rows, key=key)
    outputs = bert.apply(params, flat_pairs(batch), key=key)
    shape = batch["tokens"].shape[:2]
    pairs = outputs.features["query"].reshape(*shape, -1)
    return Outputs(outputs.logits.reshape(shape), {"pairs": pairs})

  return Model(init, apply)


def cross_encoder_axes(sizes: Sizes) -> Params:
  """Names the axes of its params, for `kdjax.prune.shrink`: those of its BERT."""
  return bert_axes(_of_bert(sizes))


def cross_encoder_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_cross_encoder` takes `params` that were shrunk from `sizes`."""
  new = bert_sizes(params, _of_bert(sizes))
  return {"separators": sizes.get("separators", 1)} | new


def _of_bert(sizes: Sizes) -> Sizes:
  own = {name: size for name, size in sizes.items() if name != "separators"}
  return own | {"head": "labels", "num_labels": 1}
