"""The pair task: which item goes with a user, learned from pairs (mf and ncf)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import loss_terms, prepared, ranking
from experiments.candidate_terms import GROUPS
from experiments.config import DataConfig, DistillConfig, FitConfig
from experiments.loss_view import DenseLogits, View, at_places
from experiments.negatives import negatives_loss, popularity, sampler
from experiments.tasks import Judgement, Task, label_loss_of, logits_of
from kdjax import losses
from kdjax.data.interactions import Dataset
from kdjax.reduce import totals
from kdjax.train.objective import Term
from kdjax.types import Array, FactoredLogits

LABEL_LOSSES = ("bpr", "sampled_softmax", "nce", "bce")


def make_task(dataset: Dataset, config: DataConfig, family: str) -> Task:
  """The task of a pair family over a prepared log."""
  train = dataset.split.train

  def make() -> dict[str, np.ndarray]:
    users = np.repeat(np.arange(train.num_users, dtype=np.int32), train.lengths)
    return {"user": users, "log_q": popularity(train.items, dataset.num_items)}

  made = prepared.rows(config, "pairs", {}, make)
  users, log_q = made["user"], made["log_q"]
  factored = family == "mf"

  def augment(fit: FitConfig):
    sample = sampler(log_q)

    def draw(batch, key):
      negatives = sample(key, (batch["items"].shape[0], fit.num_negatives))
      return {**batch, "candidates": jnp.concatenate([batch["items"][:, None], negatives], axis=1)}

    return draw

  def label_term(fit: FitConfig, weight: float) -> Term:
    name = label_loss_of(fit, "bpr" if factored else "bce", LABEL_LOSSES, family)
    return Term(name, label_loss(name, log_q), weight)

  def read_rows(fit: FitConfig):
    del fit
    whose = ("user_embedding",) if factored else ("user_gmf", "user_mlp")
    what = ("item_embedding",) if factored else ("item_gmf", "item_mlp")

    def read(batch):
      found = {(name, "embedding"): batch["user"] for name in whose}
      found |= {(name, "embedding"): batch["candidates"] for name in what}
      return found | {("item_bias",): batch["candidates"]}

    return read

  def flag_terms(distill: DistillConfig, fit: FitConfig, **counts: int):
    del fit
    groups = losses.popularity_groups(np.exp(log_q), num_groups=GROUPS)
    return loss_terms.make_terms(loss_terms.PAIR, make_view(groups, len(users)), distill, **counts)

  def judge(apply, params, part) -> Judgement:
    if factored:
      users = {"user": np.arange(dataset.num_users, dtype=np.int32)}
      return ranking.judge_factored(dataset, part, logits_of(apply, params, users))
    return ranking.judge_scorer(dataset, part, _scorer(apply), params)

  def serve(apply):
    def recommend(params, user):
      logits = apply(params, {"user": user}).logits
      scores = logits.dense() if isinstance(logits, FactoredLogits) else logits
      return jax.lax.top_k(scores, ranking.LIST)

    return recommend

  return Task(
    name="pair",
    arrays={"user": users, "items": train.items},
    num_examples=len(users),
    sizes={"num_users": dataset.num_users, "num_items": dataset.num_items},
    augment=augment,
    label_term=label_term,
    distill_term=distill_term,
    metric="ndcg@10",
    judge=judge,
    serve=serve,
    request=lambda count: np.arange(count, dtype=np.int32) % dataset.num_users,
    flag_terms=flag_terms,
    read_rows=read_rows,
  )


@functools.cache
def _scorer(apply):
  """One function a model, so that the evaluator compiles it once."""

  def scorer(params, rows, ids):
    candidates = jnp.broadcast_to(ids[None, :], (rows.shape[0], ids.shape[0]))
    return apply(params, {"user": rows, "candidates": candidates}).logits

  return scorer


def candidate_scores(outputs, batch):
  """float32 `[B, 1 + N]`: the positive first, then the negatives."""
  logits = outputs.logits
  return logits.at(batch["candidates"]) if isinstance(logits, FactoredLogits) else logits


def make_view(groups: Array, num_rows: int) -> View:
  """How --distill_losses reads pairs: the classes are the positive and its negatives."""

  def groups_of(batch, places, ids):
    candidates = at_places(places, batch["candidates"][:, None])
    return groups[jnp.take_along_axis(candidates, ids, axis=-1)]

  return View(
    logits=lambda outputs, batch: DenseLogits(candidate_scores(outputs, batch)[:, None]),
    labels=lambda batch: jnp.zeros((len(batch["items"]), 1), jnp.int32),
    items=lambda batch: batch["items"][:, None],
    where=lambda batch: jnp.ones((len(batch["items"]), 1), bool),
    real=lambda batch: jnp.ones((len(batch["items"]), 1), bool),
    num_rows=num_rows,
    groups=groups_of,
  )


def label_loss(name: str, log_q: np.ndarray):
  """The loss of the positive against its sampled negatives."""

  def loss(student, teacher, batch):
    del teacher
    scores, ids = candidate_scores(student, batch), batch["candidates"]
    own = jnp.asarray(log_q)[ids]
    return negatives_loss(
      name,
      scores[:, 0],
      scores[:, 1:],
      differs=ids[:, 1:] != ids[:, :1],
      positive_log_q=own[:, 0],
      negative_log_q=own[:, 1:],
    )

  return loss


def distill_term(distill: DistillConfig, fit: FitConfig) -> Term:
  """The distance of student and teacher on the candidates."""
  del fit

  def loss(student, teacher, batch):
    args = (candidate_scores(student, batch), candidate_scores(teacher, batch))
    if distill.distill_loss == "mse":
      return losses.logit_mse_loss(*args, reduce_fn=totals)
    fn = losses.kl_loss if distill.distill_loss == "kl" else losses.bernoulli_kl_loss
    return fn(*args, temperature=distill.temperature, reduce_fn=totals)

  return Term(f"distill_{distill.distill_loss}", loss, distill.distill_weight)
