"""From the entries of --distill_losses to the terms of an objective."""

from collections.abc import Mapping

from experiments import candidate_terms, feature_terms, logit_terms
from experiments.config import DistillConfig
from experiments.loss_flags import parse_losses
from experiments.loss_view import Maker, View
from kdjax.train.objective import Term
from kdjax.types import Outputs

CLICK: Mapping[str, Maker] = {**logit_terms.CLICK, **feature_terms.ANY}
PAIR: Mapping[str, Maker] = {**logit_terms.CATALOG, **candidate_terms.CATALOG, **feature_terms.ANY}
SEQUENCE: Mapping[str, Maker] = {**PAIR, **feature_terms.MAPS}


def make_terms(
  makers: Mapping[str, Maker],
  view: View,
  distill: DistillConfig,
  *,
  num_teachers: int,
  num_steps: int,
) -> list[Term]:
  """One term an entry.

  Args:
    makers: the losses of the task: `CLICK`, `PAIR` or `SEQUENCE`.
    view: how they read it.
    distill: the flags.
    num_teachers: how many there are to learn from.
    num_steps: of the training, over which weights are scheduled.

  Raises:
    ValueError: naming the entry that is wrong, and what would be right.
  """
  featured = [name for name in makers if name in feature_terms.ANY or name in feature_terms.MAPS]
  specs = parse_losses(
    distill.distill_losses, valid=list(makers), featured=featured, num_teachers=num_teachers
  )
  view = view._replace(temperature=distill.temperature)
  terms = []
  for spec in specs:
    init, loss = makers[spec.name](spec, view)
    init = None if init is None else _init_of_teacher(init, spec.teacher)
    loss = _loss_of_teacher(loss, spec.teacher)
    terms.append(Term(spec.term, loss, spec.schedule(num_steps), init))
  return terms


def _one_of(teacher, number: int) -> Outputs:
  """The outputs of one teacher, a tuple themselves, or of one out of a plain tuple of them."""
  return teacher if isinstance(teacher, Outputs) else teacher[number]


def _loss_of_teacher(loss, number: int):
  return lambda *args: loss(*args[:-2], _one_of(args[-2], number), args[-1])


def _init_of_teacher(init, number: int):
  return lambda key, student, teacher: init(key, student, _one_of(teacher, number))
