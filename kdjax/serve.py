"""From a trained model to queries, recommendations and embeddings."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data import batches
from kdjax.losses import cross_entropy_loss
from kdjax.losses.catalog import catalog_cross_entropy_loss
from kdjax.models.decoder import Cached
from kdjax.models.generate import ends_together
from kdjax.tree import to_host
from kdjax.types import PAD, Apply, Array, Batch, FactoredLogits, Params


def request_batch(items: Array) -> dict[str, Array]:
  """The sequence batch of requests: int32 `[B, L]` histories aligned to the left, PAD after."""
  segments = (items != PAD).astype(jnp.int32)
  positions = jax.lax.broadcasted_iota(jnp.int32, items.shape, 1) * segments
  return {"items": items, "segments": segments, "positions": positions}


def score(apply: Apply, params: Params, items: Array) -> Array:
  """Scores of the whole catalogue after the last event of each history.

  Args:
    apply: of a sequence model, whose logits are `FactoredLogits` with a query a position.
    params: its parameters.
    items: int32 `[B, L]`, aligned to the left, PAD after; at least one event each.

  Returns:
    float32 `[B, V]`.
  """
  logits = apply(params, request_batch(items)).logits
  last = jnp.maximum(jnp.sum(items != PAD, axis=1) - 1, 0)
  query = jnp.take_along_axis(logits.query, last[:, None, None], axis=1)[:, 0]
  return FactoredLogits(query, logits.table, logits.bias).dense()


def make_recommender(
  apply: Apply, *, k: int = 10, exclude_seen: bool = True
) -> Callable[[Params, Array], tuple[Array, Array]]:
  """A function from histories to the k best items: what is deployed, and what is timed.

  Args:
    apply: of a sequence model.
    k: how many items.
    exclude_seen: whether items of the history are never recommended.

  Returns:
    `(params, items [B, L]) -> (scores float32 [B, k], ids int32 [B, k])`, best first; pure, to be
    jitted by the caller.
  """

  def recommend(params, items):
    scores = score(apply, params, items)
    if exclude_seen:
      rows = jax.lax.broadcasted_iota(jnp.int32, items.shape, 0)
      # PAD and MASK are sent out of bounds, where a scatter drops them.
      seen = jnp.where(items >= 0, items, scores.shape[1])
      scores = scores.at[rows, seen].set(-jnp.inf, mode="drop")
    return jax.lax.top_k(scores, k)

  return recommend


def encode_histories(
  apply: Apply,
  params: Params,
  items: np.ndarray,
  offsets: np.ndarray,
  *,
  length: int,
  ends_with_mask: bool = False,
  rows_per_call: int = 64,
) -> FactoredLogits:
  """One query a user, after their last event, with the table they are scored against.

  Histories are packed into full rows first, so that short ones cost what they hold.

  Args:
    apply: of a sequence model.
    params: its parameters.
    items: int32 `[N]`, histories one after the other.
    offsets: int64 `[U + 1]`.
    length: positions that the model sees of each history, its last ones.
    ends_with_mask: True for masked models, which predict at a MASK after the last event.
    rows_per_call: packed rows of one call.

  Returns:
    FactoredLogits with `query [U, d]`; a user without history has a query of zeros.
  """
  if ends_with_mask:
    items, offsets = batches.append_mask(items, offsets)
  rows, ends = batches.pack_rows(items, offsets, length=length, labels=False, all_windows=False)
  num_rows = len(rows["items"])
  order = np.argsort(ends[:, 1], kind="stable")
  users, places = ends[order, 0], ends[order, 1]
  cell = rows_per_call * length
  calls = -(-num_rows // rows_per_call)
  cuts = np.searchsorted(places, np.arange(calls + 1) * cell)
  most = int(np.diff(cuts).max(initial=1))
  queries, logits = None, None
  for call in range(calls):
    first, stop = cuts[call], cuts[call + 1]
    chosen = np.zeros(most, np.int32)
    chosen[: stop - first] = places[first:stop] - call * cell
    batch = {name: _block(values, call, rows_per_call, name) for name, values in rows.items()}
    logits = _encode(apply, params, batch, chosen)
    query = to_host(logits.query)[: stop - first]
    if queries is None:
      queries = np.zeros((len(offsets) - 1, query.shape[1]), query.dtype)
    queries[users[first:stop]] = query
  if logits is None or queries is None:
    raise ValueError("no history has an event to encode")
  return FactoredLogits(jnp.asarray(queries), logits.table, logits.bias)


@functools.partial(jax.jit, static_argnums=0)
def _encode(apply, params, batch, chosen) -> FactoredLogits:
  """Compiled once for each model, however often it is evaluated."""
  logits = apply(params, batch).logits
  query = logits.query.reshape(-1, logits.query.shape[-1])[chosen]
  return FactoredLogits(query, logits.table, logits.bias)


def _block(values: np.ndarray, call: int, size: int, name: str) -> np.ndarray:
  """Rows of one call; the last call is filled up with empty rows, so that one program serves."""
  block = values[call * size : (call + 1) * size]
  if len(block) < size:
    empty = PAD if name in ("items", "labels") else 0
    block = np.pad(block, ((0, size - len(block)), (0, 0)), constant_values=empty)
  return block


def encode_texts(
  apply: Apply,
  params: Params,
  rows: Mapping[str, np.ndarray],
  *,
  tokens_per_call: int | None = None,
) -> np.ndarray:
  """What a model makes of every text, where short texts cost what they hold.

  Texts are sorted by length, the longest first, and cut into calls of about `tokens_per_call`
  positions. A call is padded to the next of few lengths, four an octave (8, 10, 12, 14, 16, 20,
  ...), each of which is compiled once.

  Args:
    apply: of a model with one output a text, such as a BERT with the head `pool` or `labels`.
    params: its parameters.
    rows: int `[N, L]` arrays as `kdjax.data.tokens.encode` gives them, each text in the first
      columns of its row; `segments` tells how long it is.
    tokens_per_call: positions of one call; None for 1,024 on a CPU, whose caches then hold what a
      layer makes of them, and 4,096 elsewhere.

  Returns:
    float32 `[N, ...]`, in the order of the rows.

  Raises:
    ValueError: if there are no texts.

  Example:
    >>> from kdjax.models import make_static
    >>> tokens = np.array([[1, 2, 3], [4, -1, -1]])
    >>> rows = {"tokens": tokens, "segments": (tokens >= 0) * 1}
    >>> model = make_static(vocab_size=5, dim=6)
    >>> encode_texts(model.apply, model.init(jax.random.key(0), rows), rows).shape
    (2, 6)
  """
  sizes = np.sum(np.asarray(rows["segments"]) != 0, axis=1)
  if not len(sizes):
    raise ValueError("no text to encode")
  lengths = batches.round_lengths(sizes, rows["segments"].shape[1])
  if tokens_per_call is None:
    tokens_per_call = 1024 if jax.default_backend() == "cpu" else 4096
  order = np.argsort(-lengths, kind="stable")
  out, first = None, 0
  while first < len(order):
    length = int(lengths[order[first]])
    count = max(1, tokens_per_call // length)
    chosen = order[first : first + count]
    # The last call is filled up with its first text, so that one program serves.
    index = np.pad(chosen, (0, count - len(chosen)), constant_values=chosen[0])
    batch = {name: jnp.asarray(values[index, :length]) for name, values in rows.items()}
    found = np.asarray(to_host(_outputs(apply, params, batch)), np.float32)
    if out is None:
      out = np.zeros((len(sizes), *found.shape[1:]), np.float32)
    out[chosen] = found[: len(chosen)]
    first += count
  assert out is not None
  return out


@functools.partial(jax.jit, static_argnums=0)
def _outputs(apply: Apply, params: Params, batch: Mapping[str, Array]) -> Array:
  return apply(params, batch).logits


def score_continuations(cached: Cached, params: Params, batch: Batch, tokens: Array) -> Array:
  r"""How likely each of several continuations of a text is, the text being read once.

  $\log p(y_n \mid x) = \sum_t \log p(y_{n,t} \mid x, y_{n,<t})$

  Args:
    cached: as from `kdjax.models.make_cached`.
    params: of that model.
    batch: the texts x: `tokens`, `segments` and `positions` int `[B, L]`, from the first column on;
      segment 0 where a text has ended, at least one token each.
    tokens: int `[B, N, T]`, N continuations of each, -1 where one has ended.

  Returns:
    float32 `[B, N]`, at most 0, in nats; 0 for a continuation without tokens.

  Example:
    >>> from kdjax.models import make_cached, make_decoder
    >>> sizes = dict(vocab_size=9, dim=8, num_layers=1, num_heads=2)
    >>> one = jnp.ones([1, 2], jnp.int32)
    >>> batch = {"tokens": one, "segments": one, "positions": jnp.arange(2)[None]}
    >>> params = make_decoder(**sizes).init(jax.random.key(0), batch)
    >>> every = jnp.arange(9)[None, :, None]
    >>> found = score_continuations(make_cached(**sizes), params, batch, every)
    >>> round(float(jnp.exp(found).sum()), 4)
    1.0
  """
  rows = ends_together({name: batch[name] for name in ("tokens", "segments", "positions")})
  texts, many, length = tokens.shape
  read, cache = cached.extend(params, rows, cached.init(texts, rows["tokens"].shape[1] + length))
  several = lambda x: jnp.repeat(x, many, axis=0) if jnp.ndim(x) else x  # noqa: E731
  labels = tokens.reshape(texts * many, length)
  last = {name: several(rows[name][:, -1:]) for name in ("segments", "positions")}
  new = {
    "tokens": labels,
    "segments": jnp.where(labels >= 0, last["segments"], 0),
    "positions": last["positions"] + 1 + jnp.arange(length)[None],
  }
  outputs, _ = cached.extend(params, new, jax.tree.map(several, cache))

  def shifted(before: Array, after: Array) -> Array:
    return jnp.concatenate([several(before[:, -1:]), after[:, :-1]], axis=1)

  real, labels = labels >= 0, jnp.maximum(labels, 0)
  before, after = read.logits, outputs.logits
  if isinstance(after, FactoredLogits):
    logits = after._replace(query=shifted(before.query, after.query))
    nats = catalog_cross_entropy_loss(logits, labels, where=real, reduce_fn=None)
  else:
    nats = cross_entropy_loss(shifted(before, after), labels, where=real, reduce_fn=None)
  return -jnp.sum(jnp.where(real, nats, 0.0), axis=1).reshape(texts, many)
