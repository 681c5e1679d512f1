"""When to prune, and how much: schedules of sparsity over steps."""

import operator
from typing import NamedTuple, Protocol

import jax.numpy as jnp

from kdjax.types import Array

Step = int | Array


class Schedule(Protocol):
  """What `prune` asks of a schedule; both methods work inside `jit`."""

  def is_update(self, step: Step) -> Array:
    """bool []: whether masks are made anew at this step."""
    ...

  def sparsity(self, step: Step) -> Array:
    """float32 []: the fraction of weights that masks made at this step remove."""
    ...


class OneShot(NamedTuple):
  """All at once. Made by `one_shot`."""

  step: int
  final: float

  def is_update(self, step: Step) -> Array:
    """True at the one step."""
    return jnp.asarray(step == self.step)

  def sparsity(self, step: Step) -> Array:
    """0 before the step, `final` from it on."""
    return jnp.where(jnp.asarray(step) >= self.step, jnp.float32(self.final), jnp.float32(0))


class Cubic(NamedTuple):
  """Fast at first, slower as weights get scarce. Made by `cubic`."""

  start: int
  end: int
  every: int
  initial: float
  final: float

  def is_update(self, step: Step) -> Array:
    """True at start, start + every, ... and always at end."""
    step = jnp.asarray(step)
    on_grid = (step - self.start) % self.every == 0
    return (step >= self.start) & (step <= self.end) & (on_grid | (step == self.end))

  def sparsity(self, step: Step) -> Array:
    """0 before start, exactly `final` from end on, the cubic between."""
    step = jnp.asarray(step)
    # Integers first: float32 would blur steps beyond 2^24.
    left = (self.end - step).astype(jnp.float32) / max(self.end - self.start, 1)
    value = self.final + (self.initial - self.final) * jnp.clip(left, 0.0, 1.0) ** 3
    value = jnp.where(step >= self.end, jnp.float32(self.final), value.astype(jnp.float32))
    return jnp.where(step < self.start, jnp.float32(0), value)


class Periodic(NamedTuple):
  """The same share of what is left, again and again. Made by `periodic`."""

  start: int
  every: int
  rounds: int
  final: float

  def is_update(self, step: Step) -> Array:
    """True at start, start + every, ..., as often as there are rounds."""
    since = jnp.asarray(step) - self.start
    return (since >= 0) & (since % self.every == 0) & (since // self.every < self.rounds)

  def sparsity(self, step: Step) -> Array:
    """0 before the first round, exactly `final` from the last one on."""
    done = jnp.clip((jnp.asarray(step) - self.start) // self.every + 1, 0, self.rounds)
    value = 1 - (1 - self.final) ** (done / self.rounds)
    return jnp.where(done == self.rounds, jnp.float32(self.final), value.astype(jnp.float32))


def one_shot(final: float, *, step: int = 0) -> OneShot:
  """Prunes once, to the final sparsity.

  Args:
    final: fraction to remove, in [0, 1].
    step: when, counted from 0.

  Returns:
    OneShot.

  Raises:
    ValueError: if `final` lies outside [0, 1] or `step` is negative.

  Example:
    >>> schedule = one_shot(0.5, step=3)
    >>> [bool(schedule.is_update(step)) for step in range(5)]
    [False, False, False, True, False]
    >>> float(schedule.sparsity(2)), float(schedule.sparsity(3))
    (0.0, 0.5)
  """
  _check_fraction("final", final)
  if step < 0:
    raise ValueError(f"step must not be negative, got {step}")
  return OneShot(operator.index(step), float(final))


def cubic(final: float, *, start: int, end: int, every: int = 1, initial: float = 0.0) -> Cubic:
  r"""Raises the sparsity from `initial` to `final` along a cubic.

  $s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (t_1 - t_0))^3$ at $t = t_0, t_0 + \Delta, \dots$, and
  at $t_1$ itself whether or not it lies on that grid: the final sparsity cannot be missed by a run
  that reaches `end`.

  Args:
    final: $s_f$, fraction removed at the end, in [0, 1].
    start: $t_0$, the first step that prunes, counted from 0.
    end: $t_1 \ge t_0$, the last step that prunes.
    every: $\Delta \ge 1$, steps between new masks.
    initial: $s_i$, in [0, final].

  Returns:
    Cubic.

  Raises:
    ValueError: if an argument lies outside its range.

  Example:
    >>> schedule = cubic(0.8, start=0, end=10, every=4)
    >>> [step for step in range(20) if schedule.is_update(step)]
    [0, 4, 8, 10]
    >>> [round(float(schedule.sparsity(step)), 4) for step in (0, 4, 8, 10, 99)]
    [0.0, 0.6272, 0.7936, 0.8, 0.8]

  Reference:
    M. Zhu, S. Gupta, To prune, or not to prune: exploring the efficacy of pruning for model
    compression, 2017, arXiv:1710.01878, equation 1; there the end is `start + n every`.
  """
  _check_fraction("final", final)
  _check_fraction("initial", initial)
  if initial > final:
    raise ValueError(f"initial sparsity {initial} exceeds the final {final}")
  if start < 0 or end < start:
    raise ValueError(f"need 0 <= start <= end, got start={start}, end={end}")
  if every < 1:
    raise ValueError(f"every must be at least 1, got {every}")
  start, end, every = (operator.index(step) for step in (start, end, every))
  return Cubic(start, end, every, float(initial), float(final))


def periodic(final: float, *, every: int, rounds: int, start: int = 0) -> Periodic:
  r"""Removes the same share of the weights that are left in every round.

  After round k of n: $s_k = 1 - (1 - s_f)^{k / n}$.

  Args:
    final: $s_f$, fraction removed after the last round, in [0, 1).
    every: steps between rounds, at least 1.
    rounds: n >= 1.
    start: the step of the first round, counted from 0.

  Returns:
    Periodic.

  Raises:
    ValueError: if an argument lies outside its range.

  Example:
    >>> schedule = periodic(0.75, every=10, rounds=2)
    >>> [(step, float(schedule.sparsity(step))) for step in range(40) if schedule.is_update(step)]
    [(0, 0.5), (10, 0.75)]

  Reference:
    J. Frankle, M. Carbin, The Lottery Ticket Hypothesis, ICLR 2019, arXiv:1803.03635 (iterative
    pruning, which rewinds the weights after each round: see `hold`).
  """
  _check_fraction("final", final)
  if final == 1:
    raise ValueError("final must be less than 1: no share of the rest, however often, is all of it")
  if every < 1 or rounds < 1 or start < 0:
    raise ValueError(
      f"need every >= 1, rounds >= 1 and start >= 0, got {every}, {rounds} and {start}"
    )
  start, every, rounds = (operator.index(n) for n in (start, every, rounds))
  return Periodic(start, every, rounds, float(final))


def _check_fraction(name: str, value: float) -> None:
  if not 0 <= value <= 1:
    raise ValueError(f"{name} must lie in [0, 1], got {value}")
