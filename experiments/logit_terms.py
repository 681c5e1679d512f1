"""--distill_losses on logits: at every position that has a label."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.config import DistillConfig
from experiments.loss_flags import LossSpec
from experiments.loss_view import Maker, View, at_places, logits_at, sample_places
from kdjax import losses
from kdjax.reduce import totals
from kdjax.train.objective import Term
from kdjax.types import Array, Batch, FactoredLogits

KEPT = 50  # Of the teacher's distribution: its best, or as many drawn from it.
RELATED = 2  # Positions of a row whose classes are correlated with each other.


def _on_logits(
  loss: Callable[..., Any], *, labelled: bool = False, in_blocks: Callable[..., Any] | None = None
) -> Maker:
  """A loss of `(student_logits, teacher_logits[, labels], *, temperature)`.

  `in_blocks` is the same of logits in factors, for which those of a whole catalogue are not made.
  """

  def make(spec: LossSpec, view: View):
    def term(student, teacher, batch):
      args = [view.logits(x, batch) for x in (student, teacher)]
      labels = [view.labels(batch)] if labelled else []
      options = {"temperature": view.temperature, "where": view.where(batch)}
      if in_blocks is not None and all(isinstance(x, FactoredLogits) for x in args):
        return in_blocks(*args, **options, reduce_fn=totals)
      return loss(*(x.dense() for x in args), *labels, **options, reduce_fn=totals)

    return Term(spec.term, term)

  return make


def forward_kl(student: Any, teacher: Any, **options: Any):
  """Forward KL of logits in any form: in factors, whole, or the teacher's best."""
  if isinstance(teacher, losses.TopK):
    return _of_best(losses.top_k_kl_loss, losses.catalog_top_k_kl_loss)(student, teacher, **options)
  if isinstance(teacher, losses.SampledTargets):  # KL but for the teacher's entropy.
    return _of_draws(student, teacher, **options)
  if isinstance(student, FactoredLogits) and isinstance(teacher, FactoredLogits):
    return losses.catalog_kl_loss(student, teacher, **options)
  return losses.kl_loss(student.dense(), teacher.dense(), **options)


def _kl(spec: LossSpec, view: View):
  def term(student, teacher, batch):
    own, other = (view.logits(x, batch) for x in (student, teacher))
    options: dict[str, Any] = {"temperature": view.temperature, "where": view.where(batch)}
    options |= view.of_rest(other, batch)
    return forward_kl(own, other, **options, reduce_fn=totals)

  return Term(spec.term, term)


def _of_best(dense: Callable[..., Any], in_blocks: Callable[..., Any]) -> Callable[..., Any]:
  """A loss from the teacher's best: `(student, teacher, *, temperature)`, logits in any form."""

  def loss(student, teacher, *, temperature, **options):
    if not isinstance(teacher, losses.TopK):
      kept = min(KEPT, teacher.num_items)
      teacher = losses.catalog_top_k_targets(_given(teacher), kept, temperature=temperature)
    if isinstance(student, FactoredLogits):
      return in_blocks(student, teacher, temperature=temperature, **options)
    return dense(student.dense(), teacher, temperature=temperature, **options)

  return loss


def _mse(student_logits, teacher_logits, *, temperature, **options):
  del temperature
  return losses.logit_mse_loss(student_logits, teacher_logits, **options)


def _bernoulli(student_logits, teacher_logits, *, where, **options):
  where = jnp.broadcast_to(where[..., None], student_logits.shape)
  return losses.bernoulli_kl_loss(student_logits, teacher_logits, where=where, **options)


def _soft(student_logits, teacher_logits, *, temperature, **options):
  probs = jax.nn.softmax(teacher_logits / temperature, axis=-1)
  return losses.soft_cross_entropy_loss(student_logits, probs, **options)


def _top_k(dense: Callable[..., Any], in_blocks: Callable[..., Any]) -> Maker:
  loss = _of_best(dense, in_blocks)

  def make(spec: LossSpec, view: View):
    def term(student, teacher, batch):
      own, other = (view.logits(x, batch) for x in (student, teacher))
      options = {"temperature": view.temperature, "where": view.where(batch)}
      options |= view.of_rest(other, batch)
      return loss(own, other, **options, reduce_fn=totals)

    return Term(spec.term, term)

  return make


def _given(logits: Any) -> FactoredLogits | Array:
  """Logits in factors as they are, others as an array."""
  return logits if isinstance(logits, FactoredLogits) else logits.dense()


def _of_draws(student: Any, teacher: losses.SampledTargets, **options: Any):
  """Cross-entropy on draws, of logits in any form."""
  if isinstance(student, FactoredLogits):
    return losses.catalog_sampled_cross_entropy_loss(student, teacher, **options)
  return losses.sampled_cross_entropy_loss(student.dense(), teacher, **options)


def _sampled(spec: LossSpec, view: View):
  def term(student, teacher, batch):
    own, other = (view.logits(x, batch) for x in (student, teacher))
    key, temperature = jax.random.key(batch["noise"][0]), view.temperature
    options: dict[str, Any] = {"temperature": temperature, "where": view.where(batch)}
    drawn: Any = other
    if not isinstance(drawn, losses.SampledTargets):
      drawn = losses.catalog_sample_targets(key, _given(other), KEPT, temperature=temperature)
    return _of_draws(own, drawn, **options, reduce_fn=totals)

  return Term(spec.term, term)


def _dist(spec: LossSpec, view: View):
  """Classes are compared across positions: of some of every row only."""

  def term(student, teacher, batch):
    where = view.where(batch)
    places = sample_places(batch, where.shape[1], RELATED)
    args = [logits_at(places, view.logits(x, batch)).dense() for x in (student, teacher)]
    return losses.dist_loss(
      *args, temperature=view.temperature, where=at_places(places, where), reduce_fn=totals
    )

  return Term(spec.term, term)


def make_term(distill: DistillConfig, where: Callable[[Batch], Array]) -> Term:
  """The term of --distill_loss on whole logits `[..., C]`, where they count."""
  by_name: dict[str, Callable[..., Any]] = {
    "kl": losses.kl_loss,
    "bernoulli_kl": _bernoulli,
    "mse": _mse,
  }
  loss = by_name[distill.distill_loss]

  def term(student, teacher, batch):
    options = {"temperature": distill.temperature, "where": where(batch)}
    return loss(student.logits, teacher.logits, **options, reduce_fn=totals)

  return Term(f"distill_{distill.distill_loss}", term, distill.distill_weight)


# What a teacher's best logits are enough for, and what they are with draws from the rest.
OF_BEST = ("kl", "top_k_kl", "top_k_reverse_kl")
OF_DRAWS = ("kl", "sampled_cross_entropy")
# With one logit a position, a click.
CLICK: Mapping[str, Maker] = {
  "bernoulli_kl": _on_logits(_bernoulli),
  "logit_mse": _on_logits(_mse),
}
# With several classes a position.
CLASSES: Mapping[str, Maker] = {
  "kl": _kl,
  "reverse_kl": _on_logits(losses.reverse_kl_loss, in_blocks=losses.catalog_reverse_kl_loss),
  "jensen_shannon": _on_logits(
    losses.jensen_shannon_loss, in_blocks=losses.catalog_jensen_shannon_loss
  ),
  "skew_kl": _on_logits(losses.skew_kl_loss),
  "skew_reverse_kl": _on_logits(losses.skew_reverse_kl_loss),
  "total_variation": _on_logits(losses.total_variation_loss),
  "cosine_probability": _on_logits(losses.cosine_probability_loss),
  "standardized_kl": _on_logits(losses.standardized_kl_loss),
  "universal_logit": _on_logits(losses.universal_logit_loss),
  "soft_cross_entropy": _on_logits(_soft),
  "top_k_kl": _top_k(losses.top_k_kl_loss, losses.catalog_top_k_kl_loss),
  "top_k_reverse_kl": _top_k(losses.top_k_reverse_kl_loss, losses.catalog_top_k_reverse_kl_loss),
  "sampled_cross_entropy": _sampled,
  "dist": _dist,
  **CLICK,
}
# And the right one known.
CATALOG: Mapping[str, Maker] = {
  **CLASSES,
  "decoupled": _on_logits(losses.decoupled_loss, labelled=True),
  "normalized_decoupled": _on_logits(losses.normalized_decoupled_loss, labelled=True),
}
