"""Cases of divergences over a catalogue, and of teachers known in part: the dense ones, in factors.

An oracle on logits `[12, V]` serves for those of a query, a table and a bias.
"""

import functools

import numpy as np
from cases_catalog import catalog, factored, scores_of
from cases_divergences import jsd_gradient, jsd_oracle, reverse_kl_gradient, reverse_kl_oracle
from cases_logits import cross_entropy_gradient, cross_entropy_oracle
from cases_sequence import (
  K,
  sampled_args,
  sampled_gradient,
  sampled_oracle,
  top_k_gradient,
  top_k_oracle,
  top_k_reverse_oracle,
)
from loss_cases import EXAMPLES, Case, normal

from kdjax import losses
from kdjax.types import FactoredLogits

ITEMS = 7
BLOCKS = {"temperature": 1.5, "block": 3}


def in_factors(oracle, *, teacher=False, gradient=False):
  """What an oracle on logits gives for those in factors; gradients by the query."""

  def of_factors(*args, block=None, **options):
    rest = (scores_of(*args[3:6]), *args[6:]) if teacher else args[3:]
    found = oracle(scores_of(*args[:3]), *rest, **options)
    return found @ np.float64(args[1]) if gradient else found

  return of_factors


def by_factors(loss):
  """A loss of factored logits and of what goes beside them, as one of plain arrays."""

  @functools.wraps(loss)
  def flat(query, table, bias, *rest, **options):
    return loss(FactoredLogits(query, table, bias), *rest, **options)

  return flat


def whole(loss, oracle, gradient, **case):
  """Cases with a whole teacher: in one block, and in several with another width."""
  shared = {
    "gradient": in_factors(gradient, teacher=True, gradient=True),
    "students": (0, 1, 2),
    "teachers": (3, 4, 5),
    "shared": (1, 2, 4, 5),
    "edges": (2, 5),
  }
  options = case.pop("options", {})
  names = [f"{case.pop('name', '')}", "blocks-unequal-widths"]
  names[1] = "-".join(filter(None, names))
  for name, width, extra in ((names[0], 6, {}), (names[1], 9, BLOCKS)):
    yield Case(
      factored(loss, teacher=True),
      lambda rng, width=width: (*catalog(ITEMS, 6)(rng), *catalog(ITEMS, width)(rng)),
      in_factors(oracle, teacher=True),
      options | extra,
      equal=((0, 3), (1, 4), (2, 5)) if width == 6 else (),
      name=name,
      **shared,
    )


def partly(loss, make, oracle, gradient, **case):
  """Cases with a teacher known in part, in one block and in several."""
  for name, options in (("", {}), ("blocks", BLOCKS)):
    yield Case(
      loss,
      lambda rng: (*catalog(ITEMS, 6)(rng), *make(rng)),
      in_factors(oracle),
      options,
      students=(0, 1, 2),
      shared=(1, 2),
      gradient=gradient and in_factors(gradient, gradient=True),
      name=name,
      **case,
    )


def best_of(loss):
  """A loss on `TopK` as one of plain arrays, all of the teacher's logits last."""
  flat = by_factors(loss)

  @functools.wraps(loss)
  def on_all(*args, **options):
    made = {"temperature": options["temperature"]} if "temperature" in options else {}
    return flat(*args[:3], losses.top_k_targets(args[3], K, **made), *args[4:], **options)

  return on_all


def drawn(loss):
  """A loss on `SampledTargets` as one of plain arrays."""
  flat = by_factors(loss)

  @functools.wraps(loss)
  def on_arrays(query, table, bias, indices, weights, *rest, **options):
    return flat(query, table, bias, losses.SampledTargets(indices, weights), *rest, **options)

  return on_arrays


JOINT = {"label_weight": 0.3, "distill_weight": 1.5}


def joint(of_teacher, of_labels):
  """An oracle (or gradient) of labels beside a teacher, the labels last, from those of each."""

  def of_both(*args, label_weight, distill_weight):
    student, *given, labels = args
    return label_weight * of_labels(student, labels) + distill_weight * of_teacher(student, *given)

  return of_both


def with_labels(make):
  return lambda rng: (*make(rng), rng.integers(0, ITEMS, EXAMPLES))


def beside_labels(loss, make, known, oracle, gradient, **case):
  """Cases of labels beside a teacher known in part."""
  for name, options in (("", {}), ("blocks", {"block": 3})):
    yield Case(
      known(loss),
      with_labels(lambda rng: (*catalog(ITEMS, 6)(rng), *make(rng))),
      in_factors(joint(oracle, cross_entropy_oracle)),
      JOINT | options,
      students=(0, 1, 2),
      shared=(1, 2),
      gradient=in_factors(joint(gradient, cross_entropy_gradient), gradient=True),
      name="-".join(filter(None, (case.get("name", ""), name))),
      **{key: value for key, value in case.items() if key != "name"},
    )


CASES = [
  *whole(losses.catalog_reverse_kl_loss, reverse_kl_oracle, reverse_kl_gradient),
  *whole(losses.catalog_jensen_shannon_loss, jsd_oracle, jsd_gradient),
  *whole(
    losses.catalog_jensen_shannon_loss, jsd_oracle, jsd_gradient,
    options={"teacher_weight": 0.2, "normalized": True}, name="normalized",
  ),
  *whole(
    losses.catalog_jensen_shannon_loss, jsd_oracle, jsd_gradient,
    options={"teacher_weight": 0.0, "normalized": True}, name="end",
  ),
  *partly(
    best_of(losses.catalog_top_k_kl_loss), normal((ITEMS,)), top_k_oracle, top_k_gradient,
    teachers=(3,), edges=(2, 3),
  ),
  *partly(
    best_of(losses.catalog_top_k_reverse_kl_loss), normal((ITEMS,)), top_k_reverse_oracle, None,
    teachers=(3,), edges=(2, 3),
  ),
  *partly(
    drawn(losses.catalog_sampled_cross_entropy_loss), lambda rng: sampled_args(rng)[1:],
    sampled_oracle, sampled_gradient, teachers=(4,), edges=(2,),
  ),
  *beside_labels(
    losses.catalog_cached_distillation_loss, normal((ITEMS,)), best_of, top_k_oracle,
    top_k_gradient, teachers=(3,), edges=(2, 3),
  ),
  *beside_labels(
    losses.catalog_cached_distillation_loss, lambda rng: sampled_args(rng)[1:], drawn,
    sampled_oracle, sampled_gradient, teachers=(4,), edges=(2,), name="draws",
  ),
]  # fmt: skip
