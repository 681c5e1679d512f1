"""Cases of `kdjax.losses.catalog`."""

import functools

import numpy as np
from cases_logits import cross_entropy_gradient, cross_entropy_oracle, kl_gradient, kl_oracle
from loss_cases import EXAMPLES, Case

from kdjax import losses
from kdjax.types import FactoredLogits


def factored(loss, *, teacher):
  """The loss as a function of plain arrays: query, table, bias (, those of the teacher), rest."""

  @functools.wraps(loss)
  def flat(*args, **options):
    student, rest = FactoredLogits(*args[:3]), args[3:]
    if teacher:
      student, rest = (student, FactoredLogits(*rest[:3])), rest[3:]
      return loss(*student, *rest, **options)
    return loss(student, *rest, **options)

  return flat


def catalog(num_items, width):
  """A `make` of query, table, bias."""

  def make(rng):
    shapes = (EXAMPLES, width), (num_items, width), (num_items,)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)

  return make


def scores_of(query, table, bias):
  return np.float64(query) @ np.float64(table).T + bias


def catalog_ce_oracle(query, table, bias, labels, block=None):
  return cross_entropy_oracle(scores_of(query, table, bias), labels)


def catalog_ce_gradient(query, table, bias, labels, block=None):
  return cross_entropy_gradient(scores_of(query, table, bias), labels) @ np.float64(table)


def catalog_kl_oracle(*args, temperature=1.0, block=None):
  return kl_oracle(scores_of(*args[:3]), scores_of(*args[3:]), temperature)


def catalog_kl_gradient(*args, temperature=1.0, block=None):
  gradient = kl_gradient(scores_of(*args[:3]), scores_of(*args[3:]), temperature)
  return gradient @ np.float64(args[1])


def catalog_distillation_oracle(*args, label_weight, distill_weight, temperature=1.0, block=None):
  label = catalog_ce_oracle(*args[:3], args[6])
  return label_weight * label + distill_weight * catalog_kl_oracle(
    *args[:6], temperature=temperature
  )


def catalog_distillation_gradient(*args, label_weight, distill_weight, temperature=1.0, block=None):
  label = catalog_ce_gradient(*args[:3], args[6])
  soft = catalog_kl_gradient(*args[:6], temperature=temperature)
  return label_weight * label + distill_weight * soft


CASES = [
  Case(
    factored(losses.catalog_cross_entropy_loss, teacher=False),
    lambda rng: (*catalog(23, 6)(rng), rng.integers(0, 23, EXAMPLES)),
    catalog_ce_oracle,
    students=(0, 1, 2),
    shared=(1, 2),
    gradient=catalog_ce_gradient,
    edges=(2,),
  ),
  Case(
    factored(losses.catalog_cross_entropy_loss, teacher=False),
    lambda rng: (*catalog(23, 6)(rng), rng.integers(0, 23, EXAMPLES)),
    catalog_ce_oracle,
    {"block": 10},
    students=(0, 1, 2),
    shared=(1, 2),
    gradient=catalog_ce_gradient,
    edges=(2,),
    name="blocks",
  ),
  Case(
    factored(losses.catalog_kl_loss, teacher=True),
    lambda rng: (*catalog(23, 6)(rng), *catalog(23, 6)(rng)),
    catalog_kl_oracle,
    students=(0, 1, 2),
    teachers=(3, 4, 5),
    shared=(1, 2, 4, 5),
    gradient=catalog_kl_gradient,
    equal=((0, 3), (1, 4), (2, 5)),
    edges=(2, 5),
  ),
  Case(
    factored(losses.catalog_kl_loss, teacher=True),
    lambda rng: (*catalog(23, 6)(rng), *catalog(23, 15)(rng)),
    catalog_kl_oracle,
    {"block": 10, "temperature": 2.0},
    students=(0, 1, 2),
    teachers=(3, 4, 5),
    shared=(1, 2, 4, 5),
    gradient=catalog_kl_gradient,
    edges=(2, 5),
    name="blocks-unequal-widths",
  ),
  Case(
    factored(losses.catalog_distillation_loss, teacher=True),
    lambda rng: (*catalog(23, 6)(rng), *catalog(23, 15)(rng), rng.integers(0, 23, EXAMPLES)),
    catalog_distillation_oracle,
    {"label_weight": 0.3, "distill_weight": 1.5},
    students=(0, 1, 2),
    teachers=(3, 4, 5),
    shared=(1, 2, 4, 5),
    gradient=catalog_distillation_gradient,
    edges=(2, 5),
  ),
  Case(
    factored(losses.catalog_distillation_loss, teacher=True),
    lambda rng: (*catalog(23, 6)(rng), *catalog(23, 15)(rng), rng.integers(0, 23, EXAMPLES)),
    catalog_distillation_oracle,
    {"label_weight": 0.3, "distill_weight": 1.5, "temperature": 2.0, "block": 10},
    students=(0, 1, 2),
    teachers=(3, 4, 5),
    shared=(1, 2, 4, 5),
    gradient=catalog_distillation_gradient,
    edges=(2, 5),
    name="blocks-temperature",
  ),
]
