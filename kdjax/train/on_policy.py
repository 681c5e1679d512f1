"""On-policy distillation: the teacher judges texts that the student writes while it trains."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax.models.decoder import Cached
from kdjax.models.generate import append, generate
from kdjax.train.step import Sample
from kdjax.types import PAD, Array, Batch, Params

_WRITTEN = ("tokens", "segments", "positions", "labels")


def make_sampler(
  cached: Cached,
  *,
  share: float = 1.0,
  prompt_tokens: int = 8,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float = 1.0,
  stop: Sequence[int] = (),
) -> Sample:
  r"""What `make_train_step(..., sample=...)` calls: rows that the student wrote, in some steps.

  With probability `share` a step is the student's own: of every row one text is drawn, its first
  `prompt_tokens` stay, and the student continues them to the row's end or a token of `stop`. Labels
  are what it wrote, PAD at prompts. Objectives compare the distributions of student and teacher
  there, and leave labels out where `written`: to learn its own words as truth teaches nothing. No
  gradient passes through the writing.

  Args:
    cached: the student's, from `kdjax.models.make_cached`.
    share: of the steps, in [0, 1].
    prompt_tokens: at least 1, fewer than a row holds; of a shorter text all tokens.
    temperature: see `kdjax.models.sample_tokens`, as `top_k` and `top_p`.
    top_k: see there.
    top_p: see there.
    stop: tokens that end a text.

  Returns:
    `(student_params, batch, key) -> batch` that reads and replaces `tokens`, `segments`,
    `positions` and `labels`, int `[B, L]`, and adds `written`, bool `[B]`.

  Raises:
    ValueError: if a number lies outside its range; at tracing, if prompts fill the rows.

  Reference:
    R. Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated
    Mistakes, ICLR 2024, arXiv:2306.13649 (algorithm 1, `share` being their lambda).
  """
  if not 0 <= share <= 1 or prompt_tokens < 1:
    raise ValueError(f"share={share} lies in [0, 1], prompt_tokens={prompt_tokens} is at least 1")

  def sample(params: Params, batch: Batch, key: Array) -> Batch:
    count, length = batch["tokens"].shape
    if prompt_tokens >= length:
      raise ValueError(f"prompt_tokens={prompt_tokens} fill rows of {length}: nothing to write")
    turn_key, text_key, write_key = jax.random.split(key, 3)

    def write() -> dict[str, Array]:
      prompts = beginnings(batch, text_key, prompt_tokens=prompt_tokens)
      tokens = generate(
        cached,
        params,
        prompts,
        write_key,
        max_new=length - prompt_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
      )
      rows = append(prompts, tokens)
      following = jnp.where(rows.pop("answers"), rows["tokens"], PAD)[:, 1:]
      rows["labels"] = jnp.pad(following, ((0, 0), (0, 1)), constant_values=PAD)
      rows = {name: rows[name].astype(batch[name].dtype) for name in _WRITTEN}
      return rows | {"written": jnp.ones(count, bool)}

    def keep() -> dict[str, Array]:
      return {name: batch[name] for name in _WRITTEN} | {"written": jnp.zeros(count, bool)}

    return {**batch, **jax.lax.cond(jax.random.uniform(turn_key) < share, write, keep)}

  return sample


def beginnings(batch: Batch, key: Array, *, prompt_tokens: int) -> dict[str, Array]:
  """The first tokens of one text of every row, as `kdjax.models.generate` continues them.

  Args:
    batch: `tokens` and `segments` int `[B, L]`, the texts of a row being segments 1, 2, ...
    key: decides which text, each of a row as likely.
    prompt_tokens: P, at most.

  Returns:
    `tokens`, `segments`, `positions` int32 `[B, P]`.

  Example:
    >>> batch = {"tokens": jnp.array([[7, 5, 9, -1]]), "segments": jnp.array([[1, 1, 1, 0]])}
    >>> beginnings(batch, jax.random.key(0), prompt_tokens=2)["tokens"].tolist()
    [[7, 5]]
  """
  tokens, segments = batch["tokens"], batch["segments"]
  texts = jnp.maximum(jnp.max(segments, axis=1), 1)
  drawn = 1 + jnp.floor(jax.random.uniform(key, texts.shape) * texts).astype(segments.dtype)
  mine = segments == jnp.minimum(drawn, texts)[:, None]
  index = jnp.arange(prompt_tokens, dtype=jnp.int32)[None]
  places = jnp.argmax(mine, axis=1)[:, None] + index
  there = index < jnp.sum(mine, axis=1)[:, None]
  found = jnp.take_along_axis(tokens, jnp.minimum(places, tokens.shape[1] - 1), axis=1)
  return {
    "tokens": jnp.where(there, found, PAD).astype(jnp.int32),
    "segments": there.astype(jnp.int32),
    "positions": jnp.where(there, index, 0),
  }
