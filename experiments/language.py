"""The language task: the next token of a text (decoder)."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import loss_terms, prepared, ranking, sequences, texts
from experiments.candidate_terms import GROUPS
from experiments.config import DataConfig, DistillConfig, FitConfig
from experiments.negatives import popularity
from experiments.tasks import Judgement, Task, label_loss_of, logits_of
from kdjax import losses
from kdjax.data import batches
from kdjax.data.ends import find_ends
from kdjax.data.retokenized import pack_beside
from kdjax.data.text import TextDataset
from kdjax.data.tokens import encode, text_frame
from kdjax.losses.catalog import catalog_cross_entropy_loss
from kdjax.models.decoder import Cached
from kdjax.train.objective import Term
from kdjax.train.on_policy import make_sampler
from kdjax.train.step import Sample
from kdjax.tree import to_host
from kdjax.types import PAD, Apply, Array, Batch, FactoredLogits, Params


def make_task(dataset: TextDataset, config: DataConfig, family: str) -> Task:
  """The language task: texts of --max_length tokens at most, packed into rows for training.

  Each ends with the token that ends texts, where there is one and room for it.
  """
  words, length = texts.tokenizer(config), config.max_length
  ends_of_text = texts.ends(config, words)
  encoded = texts.encoded(config, dataset, words, behind=ends_of_text.behind)
  rows = encoded.parts
  arrays, ends, shares = pack(config, encoded, words.get_vocab_size(), labels=True)
  before = text_frame(words)[0]

  def labelled(part: str) -> dict[str, np.ndarray]:
    given = {name: rows[part][name] for name in ("tokens", "segments", "positions")}
    following = np.pad(given["tokens"][:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    return {**given, "labels": following}

  def judge(apply, params, part) -> Judgement:
    given = labelled(part)
    asked = (given["segments"].sum(axis=1) - 1) // 2
    logits, top_k, nll = judge_tokens(apply, params, {**given, "asked": asked})
    tokens = np.maximum(given["segments"].sum(axis=1) - 1, 1)
    scalars = {"perplexity": float(np.exp(nll.sum() / tokens.sum()))}
    per_case = {"log_likelihood": -(nll / tokens).astype(np.float64)}
    scores = lambda cases: logits._replace(query=logits.query[np.asarray(cases)]).dense()  # noqa: E731
    return Judgement(per_case, scalars, top_k, scores, None)

  def flag_terms(distill: DistillConfig, fit: FitConfig, **counts: int):
    groups = losses.popularity_groups(np.exp(shares), num_groups=GROUPS)
    view = sequences.make_view(fit, groups, num_rows=len(arrays["tokens"]), causal=True)
    view = view._replace(where=_judged)
    return loss_terms.make_terms(loss_terms.LANGUAGE, view, distill, **counts)

  def sampler(distill: DistillConfig, cached: Cached) -> Sample:
    if distill.prompt_tokens >= length:
      raise ValueError(
        f"--prompt_tokens={distill.prompt_tokens} leaves nothing of --max_length={length} to write"
      )
    return make_sampler(
      cached,
      share=distill.on_policy,
      prompt_tokens=distill.prompt_tokens,
      temperature=distill.sample_temperature,
      stop=ends_of_text.stop,
    )

  def retokenize(folder: pathlib.Path, max_length: int) -> dict[str, np.ndarray] | None:
    other = texts.other_tokenizer(folder, words)
    if other is None:
      return None
    behind = find_ends(other, folder).behind
    train = list(dataset.parts["train"].texts)
    found = _joined(encode(other, train, max_length=max_length, behind=behind))
    return pack_beside(*found, arrays, ends, shift=len(text_frame(other)[0]) - len(before))

  def request(count: int) -> dict[str, Array]:
    drawn = np.random.default_rng(0).integers(0, words.get_vocab_size(), (count, length))
    return {
      "tokens": jnp.asarray(drawn, jnp.int32),
      "segments": jnp.ones((count, length), jnp.int32),
      "positions": jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (count, length)),
    }

  return Task(
    name="language",
    arrays=arrays,
    num_examples=len(ends),
    sizes={"vocab_size": words.get_vocab_size(), "max_length": length},
    augment=lambda fit: None,
    label_term=lambda fit, weight: Term(
      label_loss_of(fit, "cross_entropy", ("cross_entropy",), family),
      _of_given(sequences.label_loss("cross_entropy", shares, fit)),
      weight,
    ),
    distill_term=sequences.distill_term,
    metric="log_likelihood",
    judge=judge,
    serve=lambda apply: lambda params, batch: _last(apply(params, batch).logits),
    request=request,
    joint_term=sequences.joint_term,
    flag_terms=flag_terms,
    sampler=sampler,
    retokenize=retokenize,
    valid=labelled("valid"),
  )


def _joined(rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """The tokens of all texts one after the other, and where each begins."""
  real = rows["segments"] > 0
  return rows["tokens"][real], np.concatenate([[0], np.cumsum(real.sum(axis=1))])


def _judged(batch: Batch) -> Array:
  """Which positions the teacher says something of."""
  labelled = batch["labels"] >= 0
  return labelled & (batch["teacher_places"] >= 0) if "teacher_places" in batch else labelled


def _of_given(loss: Callable[..., Any]) -> Callable[..., Any]:
  """The loss on labels of the texts that were given, not of those that the student wrote."""

  def given(student, teacher, batch):
    if "written" in batch:
      labels = jnp.where(batch["written"][:, None], PAD, batch["labels"])
      batch = {**batch, "labels": labels}
    return loss(student, teacher, batch)

  return given


def _last(logits: FactoredLogits) -> Array:
  """Of the token after the last."""
  return logits._replace(query=logits.query[:, -1]).dense()


class Packed(NamedTuple):
  """Texts to train on, several a row.

  Attributes:
    arrays: `tokens` and more, `[N, L]`, as `batches.pack_rows` gives them.
    ends: where each text ends, as there.
    log_q: float32 `[V]`, the logarithm of each token's share of all.
  """

  arrays: dict[str, np.ndarray]
  ends: np.ndarray
  log_q: np.ndarray


def pack(config: DataConfig, encoded: texts.Encoded, vocab_size: int, *, labels: bool) -> Packed:
  """The training texts; with `labels` each position has the next token, else none."""
  options: dict[str, Any] = {"labels": labels, "seed": config.data_seed}

  def make() -> dict[str, np.ndarray]:
    rows = _joined(encoded.parts["train"])
    packed, ends = batches.pack_rows(*rows, length=config.max_length, **options)
    tokens = packed.pop("items")
    log_q = popularity(tokens[packed["segments"] > 0], vocab_size)
    return {**packed, "tokens": tokens, "ends": ends, "log_q": log_q}

  found = prepared.rows(config, "packed_texts", encoded.options | options, make)
  ends, log_q = found.pop("ends"), found.pop("log_q")
  return Packed(found, ends, log_q)


def chosen_logits(logits: FactoredLogits, batch: Batch) -> FactoredLogits:
  """Those at the positions `batch["places"]` that have the labels; all where there is no such."""
  if "places" not in batch:
    return logits
  return logits._replace(query=jnp.take_along_axis(logits.query, batch["places"][..., None], 1))


@functools.partial(jax.jit, static_argnums=0)
def _judge_block(apply: Apply, params: Params, batch: Batch) -> tuple[Array, Array, Array]:
  """As `judge_tokens`, of a block."""
  logits = chosen_logits(apply(params, batch).logits, batch)
  labels, asked = batch["labels"], batch["asked"]
  nll = catalog_cross_entropy_loss(
    logits, jnp.maximum(labels, 0), where=labels >= 0, reduce_fn=None
  )
  query = jnp.take_along_axis(logits.query, asked[:, None, None], axis=1)[:, 0]
  _, best = jax.lax.top_k(logits._replace(query=query).dense(), ranking.LIST)
  return query, best, jnp.sum(jnp.where(labels >= 0, nll, 0.0), axis=1)


def judge_tokens(
  apply: Apply, params: Params, rows: Mapping[str, np.ndarray], *, size: int = 64
) -> tuple[FactoredLogits, np.ndarray, np.ndarray]:
  """What a model says of the labels of all texts, in blocks of one shape.

  Args:
    apply: of a model of tokens.
    params: its parameters.
    rows: what it reads; int `[N, P]` `labels`, -1 where there is none, of all positions or of
      `places`; and int `[N]` `asked`, which of the P stands for the text.
    size: texts of a block.

  Returns:
    The query asked for, the likeliest tokens there, and the nats of all labels, of every text.
  """
  found, count = [], len(rows["tokens"])
  for first in range(0, count, size):
    index = np.minimum(np.arange(first, first + size), count - 1)
    block = {name: jnp.asarray(values[index]) for name, values in rows.items()}
    found.append([x[: count - first] for x in to_host(_judge_block(apply, params, block))])
  one = {name: jnp.asarray(values[:1]) for name, values in rows.items()}
  query, best, nll = (np.concatenate(parts) for parts in zip(*found, strict=True))
  return logits_of(apply, params, one)._replace(query=jnp.asarray(query)), best, nll
