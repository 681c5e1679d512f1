"""The sequence task: the next item after a history (and, for bert4rec, a masked item within it)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import head_terms, logit_terms, loss_terms, prepared, ranking
from experiments.candidate_terms import GROUPS
from experiments.config import DataConfig, DistillConfig, FitConfig
from experiments.loss_view import View
from experiments.negatives import negatives_loss, popularity, sampler
from experiments.tasks import Judgement, Task, label_loss_of
from kdjax import losses, models, serve
from kdjax.data import batches
from kdjax.data.interactions import Dataset
from kdjax.layers import segment_mask
from kdjax.losses.catalog import catalog_cross_entropy_loss, catalog_distillation_loss
from kdjax.reduce import totals
from kdjax.train.objective import Term
from kdjax.tree import to_host
from kdjax.types import MASK, PAD, Array, Batch, FactoredLogits, Params

LABEL_LOSSES = ("cross_entropy", "sampled_softmax", "bpr", "nce", "bce")
MASK_RATE = 0.3  # Share of positions a masked model fills in while training.


def make_task(dataset: Dataset, config: DataConfig, family: str) -> Task:
  """The task of a sequence family over a prepared log."""
  masked = family == "bert4rec"
  # A masked model predicts at an added MASK: its windows are one longer than its histories.
  length = config.max_length + int(masked)
  train = dataset.split.train
  options: dict[str, Any] = {
    "length": length,
    "labels": not masked,
    "all_windows": config.all_windows,
    "seed": config.data_seed,
  }

  def pack() -> dict[str, np.ndarray]:
    packed, ends = batches.pack_rows(train.items, train.offsets, **options)
    return {**packed, "ends": ends, "log_q": popularity(train.items, dataset.num_items)}

  arrays = prepared.rows(config, "packed", options, pack)
  ends, log_q = arrays.pop("ends"), arrays.pop("log_q")
  if not len(ends):
    raise ValueError("no history has two training events; nothing to learn the next item from")

  def augment(fit: FitConfig):
    negatives = fit.num_negatives if fit.label_loss not in ("auto", "cross_entropy") else 0
    if not masked and not negatives:
      return None

    sample = sampler(log_q)

    def draw(batch, key):
      mask_key, negative_key = jax.random.split(key)
      if masked:
        batch = cloze(batch, mask_key)
      if negatives:
        # A row's positions share its negatives, so that every array still splits by rows.
        shape = (batch["items"].shape[0], negatives)
        batch = {**batch, "negatives": sample(negative_key, shape)}
      return batch

    return draw

  def label_term(fit: FitConfig, weight: float) -> Term:
    name = label_loss_of(fit, "cross_entropy", LABEL_LOSSES, family)
    return Term(name, label_loss(name, log_q, fit), weight)

  def read_rows(fit: FitConfig):
    name = label_loss_of(fit, "cross_entropy", LABEL_LOSSES, family)
    if name == "cross_entropy":
      raise ValueError(
        "--lazy_tables: --label_loss=cross_entropy reads the whole catalogue; use one of "
        + ", ".join(LABEL_LOSSES[1:])
      )

    def read(batch):
      ids = [batch[name].reshape(-1) for name in ("items", "labels", "negatives")]
      return dict.fromkeys((("item_embedding", "embedding"), ("item_bias",)), jnp.concatenate(ids))

    return read

  def flag_terms(distill: DistillConfig, fit: FitConfig, **counts: int):
    groups = losses.popularity_groups(np.exp(log_q), num_groups=GROUPS)
    view = make_view(fit, groups, num_rows=len(arrays["items"]), causal=not masked)
    view = view._replace(negatives=shared_negatives(log_q, distill, fit))
    makers = {**loss_terms.SEQUENCE, **head_terms.HEADS}
    return loss_terms.make_terms(makers, view, distill, **counts)

  def judge(apply, params, part) -> Judgement:
    seen = ranking.histories(dataset, part)
    logits = serve.encode_histories(
      apply, params, seen.items, seen.offsets, length=length, ends_with_mask=masked
    )
    judgement = ranking.judge_factored(dataset, part, logits)
    judged = part == "test" and "heads" in params
    return _with_heads(judgement, dataset, params["heads"]) if judged else judgement

  def request(count: int) -> np.ndarray:
    full = np.random.default_rng(0).integers(0, dataset.num_items, (count, length))
    if masked:
      full[:, -1] = MASK
    return full.astype(np.int32)

  return Task(
    name="masked" if masked else "sequence",
    arrays=arrays,
    num_examples=len(ends),
    sizes={"num_items": dataset.num_items, "max_length": length},
    augment=augment,
    label_term=label_term,
    distill_term=lambda distill, fit: distill_term(
      distill, fit, shared_negatives(log_q, distill, fit)
    ),
    metric="ndcg@10",
    judge=judge,
    serve=lambda apply: serve.make_recommender(apply, k=ranking.LIST),
    request=request,
    joint_term=joint_term,
    flag_terms=flag_terms,
    read_rows=read_rows,
    ends=None if masked else ends,
  )


def _with_heads(judgement: Judgement, dataset: Dataset, heads: Params) -> Judgement:
  """What the heads say of all users and items, and how well on the test part."""
  assert judgement.queries is not None
  said = to_host(models.apply_heads(heads, judgement.queries.query, judgement.queries.table))
  seen, then = ranking.histories(dataset, "test"), dataset.split.test
  users = np.flatnonzero((seen.lengths > 0) & (then.lengths > 0))
  last, next_ = seen.items[seen.offsets[users + 1] - 1], then.items[then.offsets[users]]
  counts = np.bincount(then.items, minlength=dataset.num_items)
  scalars = judgement.scalars | head_terms.scores(said, last, next_, counts)
  return judgement._replace(scalars=scalars, heads=said)


def cloze(batch, key):
  """Masks a share of the real positions, which become the labels, and always some position."""
  real = batch["items"] >= 0
  hidden = (jax.random.uniform(key, real.shape) < MASK_RATE) & real
  return {
    **batch,
    "items": jnp.where(hidden, MASK, batch["items"]),
    "labels": jnp.where(hidden, batch["items"], PAD),
  }


def catalog_logits(logits: Any, fit: FitConfig) -> Any:
  """Logits in the type that the flags ask of products with the whole catalogue."""
  made = isinstance(logits, losses.TopK | losses.SampledTargets)
  if made or fit.logits_dtype == "same" or hasattr(logits.table, "rdot"):
    return logits
  query, table = (x.astype(fit.logits_dtype) for x in (logits.query, logits.table))
  return FactoredLogits(query, table, logits.bias)


def make_view(fit: FitConfig, groups: Array, *, num_rows: int, causal: bool) -> View:
  """How --distill_losses reads packed rows of histories."""
  return View(
    logits=lambda outputs, batch: catalog_logits(outputs.logits, fit),
    labels=lambda batch: jnp.maximum(batch["labels"], 0),
    items=lambda batch: jnp.maximum(batch["labels"], 0),
    where=lambda batch: batch["labels"] >= 0,
    real=lambda batch: batch["segments"] > 0,
    num_rows=num_rows,
    groups=lambda batch, places, ids: groups[ids],
    attends=lambda batch: segment_mask(batch["segments"], causal=causal),
  )


def label_loss(name: str, log_q: np.ndarray, fit: FitConfig):
  """The loss of the queries on their labels, against all items or sampled ones."""

  def full(student, teacher, batch):
    del teacher
    labels = batch["labels"]
    return catalog_cross_entropy_loss(
      catalog_logits(student.logits, fit),
      jnp.maximum(labels, 0),
      where=labels >= 0,
      reduce_fn=totals,
    )

  def sampled(student, teacher, batch):
    del teacher
    labels, negatives, logits = batch["labels"], batch["negatives"], student.logits
    safe = jnp.maximum(labels, 0)
    positive = logits.at(safe[..., None])[..., 0]
    negative = jnp.einsum("bld,bnd->bln", logits.query, logits.rows(negatives))
    negative = negative.astype(jnp.float32)
    if logits.bias is not None:
      negative = negative + logits.bias[negatives][:, None]
    return negatives_loss(
      name,
      positive,
      negative,
      differs=labels[..., None] != negatives[:, None],
      positive_log_q=jnp.asarray(log_q)[safe],
      negative_log_q=jnp.broadcast_to(jnp.asarray(log_q)[negatives][:, None], negative.shape),
      where=labels >= 0,
    )

  return full if name == "cross_entropy" else sampled


def shared_negatives(
  log_q: np.ndarray, distill: DistillConfig, fit: FitConfig
) -> Callable[[Batch], losses.Negatives] | None:
  """The negatives of all rows of a batch together, by --sampled_rest."""
  if not distill.sampled_rest:
    return None
  if fit.label_loss in ("auto", "cross_entropy"):
    raise ValueError(
      "--sampled_rest takes the negatives of the labels: give --label_loss=sampled_softmax (or "
      "bpr, nce, bce)"
    )

  def of_batch(batch: Batch) -> losses.Negatives:
    items = batch["negatives"].reshape(-1)
    return losses.Negatives(items, jnp.asarray(log_q)[items])

  return of_batch


def distill_term(
  distill: DistillConfig,
  fit: FitConfig,
  negatives: Callable[[Batch], losses.Negatives] | None = None,
) -> Term:
  """Softened KL over the catalogue at every labelled position, or its alternatives."""

  def kl(student, teacher, batch):
    rest = {}
    if negatives is not None and isinstance(teacher.logits, losses.TopK):
      rest = {"negatives": negatives(batch)}
    return logit_terms.forward_kl(
      catalog_logits(student.logits, fit),
      catalog_logits(teacher.logits, fit),
      temperature=distill.temperature,
      where=batch["labels"] >= 0,
      reduce_fn=totals,
      **rest,
    )

  def dense(student, teacher, batch):
    args = (student.logits.dense(), teacher.logits.dense())
    where = batch["labels"] >= 0
    if distill.distill_loss == "mse":
      return losses.logit_mse_loss(*args, where=where, reduce_fn=totals)
    return losses.bernoulli_kl_loss(
      *args,
      temperature=distill.temperature,
      where=jnp.broadcast_to(where[..., None], args[0].shape),
      reduce_fn=totals,
    )

  loss = kl if distill.distill_loss == "kl" else dense
  return Term(f"distill_{distill.distill_loss}", loss, distill.distill_weight)


def joint_term(distill: DistillConfig, fit: FitConfig) -> Term | None:
  """Full cross-entropy and softened KL in one sweep over the catalogue, both still logged."""
  if distill.distill_loss != "kl" or fit.label_loss not in ("auto", "cross_entropy"):
    return None
  if distill.on_policy or distill.sampled_rest:
    return None  # Positions without a label, or no sweep.
  cached = bool(distill.cache_top_k or distill.teacher_cache)
  if cached and distill.temperature != 1:
    return None  # Two log-normalisers.

  def loss(student, teacher, batch):
    labels = batch["labels"]
    both = (catalog_logits(x.logits, fit) for x in (student, teacher))
    args: Any = (*both, jnp.maximum(labels, 0))
    options: dict[str, Any] = {
      "label_weight": distill.label_weight,
      "distill_weight": distill.distill_weight,
      "parts": True,
      "where": labels >= 0,
      "reduce_fn": totals,
    }
    if cached:
      mean, parts = losses.catalog_cached_distillation_loss(*args, **options)
      kl = parts["teacher"]
    else:
      mean, parts = catalog_distillation_loss(*args, temperature=distill.temperature, **options)
      kl = parts["kl"]
    return mean, {"cross_entropy": parts["cross_entropy"], "distill_kl": kl}

  return Term("distill", loss)
