"""From the entries of --distill_losses to the terms of an objective."""

from collections.abc import Mapping, Sequence

from experiments import candidate_terms, feature_terms, logit_terms, map_terms, text_terms
from experiments.block_terms import make_term
from experiments.config import DistillConfig
from experiments.loss_flags import loss_names, parse_losses
from experiments.loss_view import Maker, View
from kdjax.train.objective import Memory, Term
from kdjax.types import Outputs

CLICK: Mapping[str, Maker] = {**logit_terms.CLICK, **feature_terms.FEATURES}
IMAGE: Mapping[str, Maker] = {**logit_terms.CATALOG, **feature_terms.FEATURES}
# No frame has a class of its own, so that none are alike.
SPEECH: Mapping[str, Maker] = {
  name: maker
  for name, maker in {**logit_terms.CLASSES, **feature_terms.FEATURES}.items()
  if name != "contrastive"
}
TEXT: Mapping[str, Maker] = {**IMAGE, **map_terms.MAPS}
PAIR: Mapping[str, Maker] = {
  **logit_terms.CATALOG,
  **candidate_terms.CATALOG,
  **feature_terms.FEATURES,
}
SEARCH: Mapping[str, Maker] = {
  **logit_terms.CATALOG,
  **candidate_terms.LISTS,
  **feature_terms.FEATURES,
}
SEQUENCE: Mapping[str, Maker] = {**PAIR, **candidate_terms.WHOLE, **map_terms.MAPS}
LANGUAGE: Mapping[str, Maker] = {**SEQUENCE, **text_terms.WRITTEN}


OF_FEATURES = {*feature_terms.FEATURES, *map_terms.MAPS}


def read_predictions(entries: Sequence[str]) -> bool:
  """Whether any entry compares more than features."""
  return bool(loss_names(entries) - OF_FEATURES)


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
    makers: the losses of the task: `CLICK`, `IMAGE`, `SPEECH`, `TEXT`, `PAIR`, `SEARCH`,
      `SEQUENCE` or `LANGUAGE`.
    view: how they read it.
    distill: the flags.
    num_teachers: how many there are to learn from.
    num_steps: of the training, over which weights are scheduled.

  Raises:
    ValueError: naming the entry that is wrong, and what would be right.
  """
  featured = [name for name in makers if name in OF_FEATURES]
  specs = parse_losses(
    distill.distill_losses, valid=list(makers), featured=featured, num_teachers=num_teachers
  )
  view = view._replace(temperature=distill.temperature)
  terms = []
  for spec in specs:
    term = _of_teacher(make_term(makers[spec.name], spec, view), spec.teacher)
    terms.append(term._replace(weight=spec.schedule(num_steps)))
  return terms


def _of_teacher(term: Term, number: int) -> Term:
  """The term on the outputs of one teacher: a tuple themselves, or one of a plain tuple of them."""

  def one_of(teacher) -> Outputs:
    return teacher if isinstance(teacher, Outputs) else teacher[number]

  def of_batch(fn):
    return lambda *args: fn(*args[:-2], one_of(args[-2]), args[-1])

  def of_shapes(init):
    return lambda key, student, teacher: init(key, student, one_of(teacher))

  return Term(
    term.name,
    of_batch(term.loss),
    term.weight,
    None if term.init is None else of_shapes(term.init),
    None
    if term.memory is None
    else Memory(of_shapes(term.memory.init), of_batch(term.memory.change)),
  )
