"""The masked language task: which tokens are hidden in a text, told from the others (bert)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import loss_terms, sequences, texts
from experiments.candidate_terms import GROUPS
from experiments.config import DataConfig, DistillConfig, FitConfig
from experiments.language import chosen_logits, judge_tokens, pack
from experiments.tasks import Judgement, Task, label_loss_of
from kdjax import losses
from kdjax.data.errors import DataError
from kdjax.data.text import TextDataset
from kdjax.data.tokens import mask_id, ordinary_ids
from kdjax.train.objective import Term
from kdjax.types import PAD, Apply, Array, Batch, FactoredLogits, Outputs, Params

NAME = "masked_language"
RATE = 0.15  # Share of a row's tokens that are to be told.
KEPT, SWAPPED = 0.1, 0.1  # Shares of those that a model sees as they are, or as any other token.
# What compares positions of one label needs labels of all positions.
LOSSES = {name: make for name, make in loss_terms.SEQUENCE.items() if name != "contrastive"}


def make_task(dataset: TextDataset, config: DataConfig, family: str) -> Task:
  """The masked language task: texts of --max_length tokens at most, packed for training.

  Validation and test hide the same tokens every time.
  """
  words, length = texts.tokenizer(config), config.max_length
  ordinary, hidden = ordinary_ids(words), mask_id(words)
  size = len(ordinary)
  encoded = texts.encoded(config, dataset, words)
  rows = encoded.parts
  packed, ends, shares = pack(config, encoded, size, labels=False)
  arrays = {name: values for name, values in packed.items() if name != "labels"}

  def fixed(part: str) -> dict[str, np.ndarray]:
    """The texts of a part with some tokens hidden."""
    found = hide(
      rows[part], jax.random.key(config.data_seed), ordinary=ordinary, hidden=hidden,
      kept=0.0, swapped=0.0,
    )  # fmt: skip
    known = np.asarray(found["labels"][:, 0] >= 0)
    if not known.any():
      raise DataError(
        f"{config.dataset}: no text of the {part} part has a token that can be hidden"
      )
    return {name: np.asarray(values)[known] for name, values in found.items()}

  judged = {part: fixed(part) for part in ("valid", "test")}

  def judge(apply, params, part) -> Judgement:
    given = judged[part]
    asked = np.zeros(len(given["tokens"]), np.int32)
    logits, top_k, nll = judge_tokens(apply, params, {**given, "asked": asked})
    tokens = np.sum(given["labels"] >= 0, axis=1)
    per_case = {
      "log_likelihood": -(nll / tokens).astype(np.float64),
      "accuracy": (top_k[:, 0] == given["labels"][:, 0]).astype(np.float64),
    }
    scalars = {"pseudo_perplexity": float(np.exp(nll.sum() / tokens.sum()))}
    scores = lambda cases: logits._replace(query=logits.query[np.asarray(cases)]).dense()  # noqa: E731
    return Judgement(per_case, scalars, top_k, scores, None)

  def label_term(fit: FitConfig, weight: float) -> Term:
    name = label_loss_of(fit, "cross_entropy", ("cross_entropy",), family)
    return _at_hidden(Term(name, sequences.label_loss(name, shares, fit), weight))

  def joint_term(distill: DistillConfig, fit: FitConfig) -> Term | None:
    term = sequences.joint_term(distill, fit)
    return None if term is None else _at_hidden(term)

  def flag_terms(distill: DistillConfig, fit: FitConfig, **counts: int):
    groups = losses.popularity_groups(np.exp(shares), num_groups=GROUPS)
    view = sequences.make_view(fit, groups, num_rows=len(arrays["tokens"]), causal=False)
    view = view._replace(
      logits=lambda outputs, batch: sequences.catalog_logits(
        chosen_logits(outputs.logits, batch), fit
      )
    )
    return loss_terms.make_terms(LOSSES, view, distill, **counts)

  def request(count: int) -> dict[str, Array]:
    drawn = np.random.default_rng(0).choice(np.flatnonzero(ordinary), (count, length))
    drawn[:, length // 2] = hidden
    return {
      "tokens": jnp.asarray(drawn, jnp.int32),
      "segments": jnp.ones((count, length), jnp.int32),
      "positions": jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (count, length)),
    }

  return Task(
    name=NAME,
    arrays=arrays,
    num_examples=len(ends),
    sizes={"vocab_size": size, "max_length": length, "head": "tokens"},
    augment=lambda fit: lambda batch, key: hide(batch, key, ordinary=ordinary, hidden=hidden),
    label_term=label_term,
    distill_term=lambda distill, fit: _at_hidden(sequences.distill_term(distill, fit)),
    metric="log_likelihood",
    judge=judge,
    serve=lambda apply: lambda params, batch: fill(apply, params, batch, hidden=hidden).dense(),
    request=request,
    joint_term=joint_term,
    flag_terms=flag_terms,
    valid=rows["valid"],
  )


def hide(
  batch: Batch,
  key: Array,
  *,
  ordinary: np.ndarray,
  hidden: int,
  kept: float = KEPT,
  swapped: float = SWAPPED,
) -> dict[str, Any]:
  """Hides RATE of the ordinary tokens of every row, one at least, which become its labels.

  Args:
    batch: int `[B, L]` `tokens`, -1 where there is none, and more.
    key: a PRNG key.
    ordinary: bool `[V]`, which tokens may be hidden, and may stand for others.
    hidden: the token that stands for a hidden one.
    kept: share of the labels whose token stays.
    swapped: share of them whose token becomes any ordinary one.

  Returns:
    The batch with other `tokens`, and int32 `[B, K]` `places` of the labels and `labels`, -1 where
    a row has fewer; K is RATE of L.

  Reference:
    J. Devlin et al., BERT, NAACL 2019, arXiv:1810.04805, section 3.1.
  """
  tokens = jnp.asarray(batch["tokens"])
  where_key, how_key, other_key = jax.random.split(key, 3)
  free = (tokens >= 0) & jnp.asarray(ordinary)[jnp.maximum(tokens, 0)]
  most = max(1, round(RATE * tokens.shape[1]))
  count = jnp.sum(free, axis=1)
  wanted = jnp.clip(jnp.round(RATE * count).astype(int), jnp.minimum(count, 1), most)
  order = jnp.where(free, jax.random.uniform(where_key, tokens.shape), -1.0)
  _, places = jax.lax.top_k(order, most)
  chosen = jnp.arange(most)[None] < wanted[:, None]
  before = jnp.take_along_axis(tokens, places, axis=1)
  others = jnp.asarray(np.flatnonzero(ordinary), tokens.dtype)
  other = others[jax.random.randint(other_key, places.shape, 0, len(others))]
  how = jax.random.uniform(how_key, places.shape)
  seen = jnp.where(how < kept, before, jnp.where(how < kept + swapped, other, hidden))
  rows = jnp.arange(len(tokens))[:, None]
  return {
    **batch,
    "tokens": tokens.at[rows, places].set(jnp.where(chosen, seen, before)),
    "places": places,
    "labels": jnp.where(chosen, before, PAD),
  }


def fill(apply: Apply, params: Params, batch: Batch, *, hidden: int) -> FactoredLogits:
  """Logits at the first hidden token of every row: their query is `[B, d]`."""
  logits = apply(params, batch).logits
  place = jnp.argmax(batch["tokens"] == hidden, axis=1)
  query = jnp.take_along_axis(logits.query, place[:, None, None], axis=1)[:, 0]
  return logits._replace(query=query)


def _at_hidden(term: Term) -> Term:
  """The term on logits of the labelled positions alone: few, and the vocabulary is large."""

  def loss(student, teacher, batch):
    def pick(outputs):
      if not isinstance(outputs, Outputs):
        return outputs  # No teacher, or several, which a loss on labels does not read.
      return outputs._replace(logits=chosen_logits(outputs.logits, batch))

    return term.loss(pick(student), pick(teacher), batch)

  return term._replace(loss=loss)
