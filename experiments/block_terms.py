"""--distill_losses on all blocks: `name@blocks`, each of the student's beside one of the teacher's.

Evenly spread, the last beside the last: 2 blocks learn from the third and the sixth of 6.
"""

import re
from collections.abc import Mapping

import jax

from experiments.loss_flags import BLOCKS, LossSpec
from experiments.loss_view import Maker, View
from kdjax.prune import spread_layers
from kdjax.reduce import Mean
from kdjax.train.objective import Term
from kdjax.types import Outputs, Params


def make_term(maker: Maker, spec: LossSpec, view: View) -> Term:
  """The term of an entry; of `@blocks` the mean of those of all pairs of blocks.

  Raises:
    ValueError: if the loss cannot be taken block by block, or a model has no blocks.
  """
  if BLOCKS not in (spec.student_feature, spec.teacher_feature):
    return maker(spec, view)
  if spec.student_feature != spec.teacher_feature:
    raise ValueError(f"--distill_losses: {spec.term!r}: {BLOCKS} stands for those of both models")
  of_one = maker(spec, view)
  if of_one.memory is not None:
    raise ValueError(f"--distill_losses: {spec.name} fits no {BLOCKS}; name one of them")

  def terms(student: Outputs, teacher: Outputs) -> dict[str, Term]:
    pairs = _pairs(spec, student, teacher)
    return {
      own: maker(spec._replace(student_feature=own, teacher_feature=other), view)
      for own, other in pairs.items()
    }

  def init(key, student, teacher) -> Mapping[str, Params]:
    found = terms(student, teacher)
    keys = jax.random.split(key, len(found))
    return {
      name: term.init(k, student, teacher)
      for (name, term), k in zip(found.items(), keys, strict=True)
      if term.init is not None
    }

  def loss(*args):
    *params, student, teacher, batch = args
    means = [
      term.loss(*(own[name] for own in params), student, teacher, batch)
      for name, term in terms(student, teacher).items()
    ]
    return Mean(sum(mean.total for mean in means), sum(mean.count for mean in means))

  return Term(spec.term, loss, init=None if of_one.init is None else init)


def _pairs(spec: LossSpec, student: Outputs, teacher: Outputs) -> dict[str, str]:
  counts = []
  for outputs, whose in ((student, "student"), (teacher, "teacher")):
    counts.append(sum(re.fullmatch(r"block_\d+", name) is not None for name in outputs.features))
    if not counts[-1]:
      raise ValueError(f"--distill_losses: {spec.term!r}: the {whose} has no blocks")
  own, other = counts
  if own > other:
    raise ValueError(
      f"--distill_losses: {spec.term!r}: the student has {own} blocks, the teacher only {other}"
    )
  return {f"block_{i}": f"block_{j}" for i, j in enumerate(spread_layers(other, own))}
