"""--distill_losses of language models alone: on texts that a teacher or the student wrote."""

from collections.abc import Mapping

import jax.numpy as jnp

from experiments.loss_flags import LossSpec
from experiments.loss_view import Maker, View
from kdjax import losses
from kdjax.reduce import Mean, totals
from kdjax.train.objective import Term


def _policy(spec: LossSpec, view: View) -> Term:
  """MiniLLM on the texts that the student wrote in this step; of others nothing is learned."""

  def term(student, teacher, batch):
    if "written" not in batch:
      raise ValueError(
        "--distill_losses: policy learns from texts that the student writes; give --on_policy"
      )
    own, other = (view.logits(x, batch).dense() for x in (student, teacher))
    tokens, where = view.labels(batch), view.where(batch) & batch["written"][:, None]
    said = [
      losses.token_log_probs(logits, tokens, temperature=view.temperature, where=where)
      for logits in (own, other)
    ]
    return losses.policy_loss(
      own,
      other,
      tokens,
      losses.policy_returns(*said, where=where),
      temperature=view.temperature,
      where=where,
      reduce_fn=totals,
    )

  return Term(spec.term, term)


def _sequence(spec: LossSpec, view: View) -> Term:
  """The probability of whole texts, of those that were given: a teacher wrote them."""

  def term(student, teacher, batch):
    del teacher
    where = view.where(batch)
    if "written" in batch:
      where &= ~batch["written"][:, None]
    rows = losses.sequence_loss(
      view.logits(student, batch).dense(), view.labels(batch), token_where=where, reduce_fn=None
    )
    # A row holds several texts, whose losses it adds up.
    texts = jnp.max(jnp.where(where, batch["segments"], 0), axis=1)
    return Mean(jnp.sum(rows), jnp.sum(texts, dtype=jnp.float32))

  return Term(spec.term, term)


WRITTEN: Mapping[str, Maker] = {"policy": _policy, "sequence": _sequence}
