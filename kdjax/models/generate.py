"""Texts written token by token: sampling, and a loop that compiles into one program."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.models.decoder import Cached
from kdjax.tree import vary_as
from kdjax.types import PAD, Array, Batch, Params


def sample_tokens(
  logits: Array,
  key: Array,
  *,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float = 1.0,
) -> Array:
  r"""Draws one token a row from $\mathrm{softmax}(z / T)$, cut to its likeliest tokens.

  First the `top_k` largest stay, then of these the fewest likeliest whose probabilities (of what
  stayed) sum to `top_p` or more; what is left is normalised.

  Args:
    logits: float `[..., V]`; -inf for what must not be drawn.
    key: a PRNG key.
    temperature: T, at least 0; 0 for the largest logit, the first of equals.
    top_k: at least 1, None for all.
    top_p: in (0, 1].

  Returns:
    int32 `[...]`.

  Raises:
    ValueError: if a number lies outside its range.

  Example:
    >>> logits = jnp.log(jnp.array([[0.1, 0.6, 0.3]]))
    >>> int(sample_tokens(logits, jax.random.key(0), top_p=0.5)[0])
    1

  Reference:
    A. Fan et al., Hierarchical Neural Story Generation, ACL 2018 (top k). A. Holtzman et al., The
    Curious Case of Neural Text Degeneration, ICLR 2020, arXiv:1904.09751 (top p).
  """
  if temperature < 0 or (top_k is not None and top_k < 1) or not 0 < top_p <= 1:
    raise ValueError(
      f"temperature={temperature} is at least 0, top_k={top_k} at least 1, top_p={top_p} in (0, 1]"
    )
  logits = logits.astype(jnp.float32)
  if temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = logits / temperature
  if top_k is None and top_p == 1:
    return jax.random.categorical(key, logits).astype(jnp.int32)
  size = logits.shape[-1]
  values, ids = jax.lax.top_k(logits, size if top_k is None else min(top_k, size))
  shares = jax.nn.softmax(values, axis=-1)
  before = jnp.cumsum(shares, axis=-1) - shares
  values = jnp.where(before < top_p, values, -jnp.inf)
  drawn = jax.random.categorical(key, values)
  return jnp.take_along_axis(ids, drawn[..., None], axis=-1)[..., 0].astype(jnp.int32)


def generate(
  cached: Cached,
  params: Params,
  batch: Batch,
  key: Array,
  *,
  max_new: int,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float = 1.0,
  stop: Sequence[int] = (),
) -> Array:
  """Continues every row until a stop token, at most `max_new` tokens; compiles as a whole.

  The rows may end at different places. No gradient passes.

  Args:
    cached: as from `kdjax.models.make_cached`.
    params: of that model.
    batch: `tokens`, `segments` and `positions` int `[B, L]`, one text a row, from its first
      column on; segment 0 where it has ended.
    key: a PRNG key; the same key draws the same tokens.
    max_new: at least 1.
    temperature: see `sample_tokens`, as `top_k` and `top_p`.
    top_k: see there.
    top_p: see there.
    stop: tokens that end a text.

  Returns:
    int32 `[B, max_new]`: what was drawn, the stop token too, and -1 after it.

  Raises:
    ValueError: if `max_new` is below 1, or a number of `sample_tokens` outside its range.

  Example:
    >>> from kdjax.models import make_cached, make_decoder
    >>> sizes = dict(vocab_size=9, dim=8, num_layers=1, num_heads=2)
    >>> tokens = jnp.array([[2, 5, 3], [4, -1, -1]])
    >>> batch = {"tokens": tokens, "segments": (tokens >= 0) * 1, "positions": jnp.arange(3)[None]}
    >>> params = make_decoder(**sizes).init(jax.random.key(0), batch)
    >>> generate(make_cached(**sizes), params, batch, jax.random.key(1), max_new=4).shape
    (2, 4)
  """
  if max_new < 1:
    raise ValueError(f"max_new={max_new} is at least 1")
  rows = ends_together({name: batch[name] for name in ("tokens", "segments", "positions")})
  count, length = rows["tokens"].shape
  ends = jnp.asarray(stop, jnp.int32).reshape(-1)

  def draw(outputs: Any, step: Array) -> Array:
    logits = outputs.logits
    if hasattr(logits, "dense"):
      logits = logits._replace(query=logits.query[:, -1]).dense()
    else:
      logits = logits[:, -1]
    own = jax.random.fold_in(key, step)
    return sample_tokens(logits, own, temperature=temperature, top_k=top_k, top_p=top_p)

  def write(drawn: Array, alive: Array, tokens: Array, step: Array) -> tuple[Array, Array]:
    tokens = tokens.at[:, step].set(jnp.where(alive, drawn, PAD))
    return alive & jnp.all(drawn[:, None] != ends[None], axis=1), tokens

  def more(carry: Any) -> Array:
    step, _, alive, _, _ = carry
    return (step < max_new) & jnp.any(alive)

  def advance(carry: Any) -> Any:
    step, drawn, alive, tokens, cache = carry
    new = {
      "tokens": drawn[:, None],
      "segments": rows["segments"][:, -1:],
      "positions": rows["positions"][:, -1:] + step,
    }
    outputs, cache = cached.extend(params, new, cache)
    drawn = draw(outputs, step)
    alive, tokens = write(drawn, alive, tokens, step)
    return step + 1, drawn, alive, tokens, cache

  outputs, cache = cached.extend(params, rows, cached.init(count, length + max_new))
  drawn = draw(outputs, jnp.int32(0))
  tokens = jnp.full([count, max_new], PAD, jnp.int32)
  alive, tokens = write(drawn, jnp.ones([count], bool), tokens, jnp.int32(0))
  carry = (jnp.int32(1), *vary_as((drawn, alive, tokens, cache), drawn))
  return jax.lax.stop_gradient(jax.lax.while_loop(more, advance, carry)[3])


def append(batch: Batch, tokens: Array) -> dict[str, Array]:
  """The rows with what was generated behind them, as training reads them.

  Args:
    batch: as given to `generate`.
    tokens: int `[B, N]`, as it returned them: -1 where a text has ended.

  Returns:
    `tokens`, `segments`, `positions` int32 `[B, L + N]`, and `answers` bool, where a token was
    generated.

  Example:
    >>> tokens = jnp.array([[7, -1]])
    >>> batch = {"tokens": tokens, "segments": (tokens >= 0) * 1, "positions": jnp.arange(2)[None]}
    >>> append(batch, jnp.array([[3, 8, -1]]))["tokens"].tolist()
    [[7, 3, 8, -1, -1]]
  """
  rows = ends_together({name: batch[name] for name in ("tokens", "segments", "positions")})
  new = tokens != PAD
  joined = {
    "tokens": jnp.concatenate([rows["tokens"], tokens], axis=1),
    "segments": jnp.concatenate([rows["segments"], new * rows["segments"][:, -1:]], axis=1),
    "answers": jnp.concatenate([jnp.zeros_like(rows["tokens"], bool), new], axis=1),
  }
  shift = batch["tokens"].shape[1] - jnp.sum(batch["segments"] != 0, axis=1)
  joined = {name: jax.vmap(jnp.roll)(x, -shift) for name, x in joined.items()}
  real = joined["segments"] != 0
  index = jnp.broadcast_to(jnp.arange(real.shape[1], dtype=jnp.int32)[None], real.shape)
  return joined | {
    "tokens": jnp.where(real, joined["tokens"], PAD).astype(jnp.int32),
    "positions": jnp.where(real, index, 0),
  }


def ends_together(batch: dict[str, Array]) -> dict[str, Array]:
  """Rows `[B, L]` that all end in the last column, with their padding in front."""
  length = batch["tokens"].shape[1]
  shift = length - jnp.sum(batch["segments"] != 0, axis=1)
  shape = batch["tokens"].shape
  return {name: jax.vmap(jnp.roll)(jnp.broadcast_to(x, shape), shift) for name, x in batch.items()}
