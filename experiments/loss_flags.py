"""The language of --distill_losses: which losses, on which features, of which teacher, how much.

kl:0.5   rkd_distance@query:25   hint@block_0=block_1:0.1   kl#2:0.5   listnet:1>0.1
"""

import difflib
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import optax

_ENTRY = re.compile(
  r"(?P<name>\w+)(@(?P<student>\w+)(=(?P<teacher>\w+))?)?(#(?P<number>\d+))?"
  r":(?P<weight>[^>]+)(>(?P<final>.+))?"
)
GRAMMAR = "name[@student_feature[=teacher_feature]][#teacher]:weight[>final_weight]"


BLOCKS = "blocks"  # As a feature: every block of the student, beside one of the teacher's.


class LossSpec(NamedTuple):
  """One entry of the flag.

  Attributes:
    name: of the loss, without `_loss`.
    weight: at the start of the training.
    final_weight: at its end, the way there straight; None for a constant weight.
    student_feature: what to compare, or None for the loss's own choice.
    teacher_feature: its counterpart, the same by default.
    teacher: which teacher, from 0.
  """

  name: str
  weight: float
  final_weight: float | None = None
  student_feature: str | None = None
  teacher_feature: str | None = None
  teacher: int = 0

  @property
  def term(self) -> str:
    """What metrics call it: the entry without its weight."""
    student, teacher = self.student_feature, self.teacher_feature
    pair = "" if student is None else f"@{student}" + (f"={teacher}" if teacher != student else "")
    return self.name + pair + (f"#{self.teacher + 1}" if self.teacher else "")

  def schedule(self, num_steps: int):
    """The weight, or an optax schedule of it."""
    if self.final_weight is None:
      return self.weight
    return optax.linear_schedule(self.weight, self.final_weight, max(1, num_steps))


def parse_losses(
  entries: Sequence[str], *, valid: Sequence[str], featured: Sequence[str], num_teachers: int = 1
) -> list[LossSpec]:
  """Reads --distill_losses.

  Args:
    entries: one text a loss.
    valid: names that may stand there.
    featured: those of them that compare features, and may say which.
    num_teachers: how many there are to choose from.

  Raises:
    ValueError: naming the entry, what is wrong with it, and what would be right.

  Example:
    >>> parse_losses(["hint@a=b#2:1>0.5"], valid=["hint"], featured=["hint"], num_teachers=2)[0]
    LossSpec(name='hint', weight=1.0, final_weight=0.5, student_feature='a', teacher_feature='b', \
teacher=1)
  """
  specs = [_parse(entry, valid, featured, num_teachers) for entry in entries]
  names = [spec.term for spec in specs]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f"--distill_losses: {name!r} stands there twice; add the weights up")
  return specs


def loss_names(entries: Sequence[str]) -> set[str]:
  """The names that the entries begin with, be the entries right or wrong.

  Example:
    >>> sorted(loss_names(["kl#2:0.5", "hint@query:1"]))
    ['hint', 'kl']
  """
  return {re.split(r"[@#:]", entry.strip(), maxsplit=1)[0] for entry in entries}


def _parse(entry: str, valid: Sequence[str], featured: Sequence[str], num_teachers: int):
  def refuse(what: str) -> ValueError:
    return ValueError(f"--distill_losses: {entry!r}: {what}")

  match = _ENTRY.fullmatch(entry.strip())
  if match is None:
    raise refuse(f"not of the form {GRAMMAR}")
  name, student = match["name"], match["student"]
  if name not in valid:
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise refuse(f"no such loss here; {hint}There are {', '.join(sorted(valid))}")
  if student is not None and name not in featured:
    raise refuse(f"{name} compares no features; those that do: {', '.join(sorted(featured))}")
  number = int(match["number"] or 1)
  if not 1 <= number <= num_teachers:
    raise refuse(f"teacher {number} of {num_teachers}; they are counted from 1")

  def number_of(text: str) -> float:
    try:
      weight = float(text)
    except ValueError as error:
      raise refuse(f"weight {text!r} is not a number") from error
    if not (math.isfinite(weight) and weight >= 0):
      raise refuse("a weight must be finite and not negative")
    return weight

  weight = number_of(match["weight"])
  final = None if match["final"] is None else number_of(match["final"])
  if not weight and not final:
    raise refuse("a weight of 0 does nothing; leave the entry out")
  return LossSpec(name, weight, final, student, match["teacher"] or student, number - 1)
