"""The training loop: chunks of compiled steps, validation, checkpoints, early stop, resume."""

import contextlib
import functools
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from kdjax.data import batches
from kdjax.reduce import Mean
from kdjax.train import placement, processes
from kdjax.train.checkpoint import CheckpointError, Checkpoints, open_checkpoints
from kdjax.train.parallel import Runner
from kdjax.train.state import TrainState
from kdjax.train.writers import Write
from kdjax.types import Array, Params


class NonFiniteError(FloatingPointError):
  """A loss became NaN or infinite; the message names step, term and last good checkpoint."""


class Interrupted(SystemExit):
  """SIGTERM came: the state was saved and the run can be resumed."""


class Progress(NamedTuple):
  """Where a run stands; what a checkpoint stores beside the state.

  Attributes:
    step: steps taken.
    best_value: the best validation metric so far, or None before the first validation.
    best_step: the step that reached it.
    stale: validations since then.
    seconds: of training so far, validation and saving included, over all resumes.
    first_call_seconds: until the first call of compiled steps was done, compiling included; of the
      process that began the run.
    batch_size: rows of every step; 0 in checkpoints that do not say.
  """

  step: int = 0
  best_value: float | None = None
  best_step: int = 0
  stale: int = 0
  seconds: float = 0.0
  first_call_seconds: float | None = None
  batch_size: int = 0


class Feed(NamedTuple):
  """The training examples and how they are drawn.

  Attributes:
    arrays: rows by name, `[R, ...]` NumPy arrays (or memory maps, with `resident=False`).
    batch_size: rows of a step.
    seed: of the epochs' shuffles.
    resident: True puts all rows on the device once; False streams each chunk's rows to it.
    mesh: of the runner, over whose devices the rows are split; None for the one device.
    lengths: int `[R]`, of how many positions each row makes use, or None. Rows of like length then
      share a batch, whose `cut` arrays have as many columns as its longest row needs; each length
      is a program of its own, so let there be few (`kdjax.data.batches.round_lengths`). For
      resident rows.
    cut: names of the arrays `[R, ..., L]` of positions.
  """

  arrays: Mapping[str, np.ndarray]
  batch_size: int
  seed: int = 0
  resident: bool = True
  mesh: Mesh | None = None
  lengths: np.ndarray | None = None
  cut: tuple[str, ...] = ()

  @property
  def num_rows(self) -> int:
    """R."""
    return len(next(iter(self.arrays.values())))

  @property
  def steps_per_epoch(self) -> int:
    """Steps that one pass over the rows takes."""
    return batches.steps_per_epoch(self.num_rows, self.batch_size)


def fit(
  runner: Runner,
  state: TrainState,
  feed: Feed,
  *,
  num_steps: int,
  key: Array,
  workdir: pathlib.Path,
  teacher_params: Params = None,
  validate: Callable[[TrainState], Mapping[str, float]] | None = None,
  validate_every: int | None = None,
  metric: str = "",
  patience: int | None = None,
  min_best_step: int = 0,
  steps_per_call: int = 64,
  write: Write = lambda step, numbers: None,
  progress: bool = True,
  name: str = "train",
) -> tuple[TrainState, Progress]:
  """Trains up to `num_steps` steps and returns the best state by validation.

  A run whose workdir holds checkpoints goes on from the newest one and ends with the very bits of a
  run that was never stopped: data order and randomness are functions of seed and step.

  Several processes call it together, each with the same arguments: what decides is what the first
  one sees, the first one draws the bar, and SIGTERM on any of them stops all at the same step.

  Args:
    runner: `jit_runner` or `pmap_runner`.
    state: the state at step 0; donated. It tells shapes and placement when resuming.
    feed: the training rows.
    num_steps: at most this many steps.
    key: PRNG key of dropout and augmentation.
    workdir: `checkpoints/` is made in it.
    teacher_params: passed to every step, never checkpointed; None without a live teacher.
    validate: `(state) -> {name: number}`; None keeps the last state as the best.
    validate_every: steps between validations and checkpoints; an epoch by default.
    metric: which of the numbers decides, the greater the better.
    patience: stop after this many validations without a better one; None never does.
    min_best_step: validations before this step cannot become the best: a student that is still
      being pruned is not the student that was asked for.
    steps_per_call: steps of one compiled call.
    write: takes `(step, numbers)` after every validation.
    progress: whether to draw a progress bar.
    name: of the run, for the bar.

  Returns:
    The state of the best validation, and the final `Progress`.

  Raises:
    NonFiniteError: when a loss is NaN or infinite.
    Interrupted: after SIGTERM, once the state is saved.
    CheckpointError: if the workdir's newest checkpoint cannot be read, or its steps had another
      number of rows.
  """
  every = validate_every or feed.steps_per_epoch
  with open_checkpoints(workdir / "checkpoints") as checkpoints, _sigterm() as stop:
    position = Progress()
    if (newest := checkpoints.newest()) is not None:
      state, saved = checkpoints.restore(newest, state)
      position = Progress(**saved)
      _check_batch(position, feed.batch_size)
    position = position._replace(batch_size=feed.batch_size)
    # The bar is made after restoring, so that its rate is this process's own.
    bar = tqdm(
      total=num_steps,
      initial=position.step,
      desc=name,
      unit="step",
      disable=not (progress and processes.is_first()),
      dynamic_ncols=True,
      mininterval=0.5,
    )
    started = time.monotonic() - position.seconds
    chunks = _chunks(feed, position.step, num_steps, every, steps_per_call)
    sums: dict[str, Mean] = {}
    calls: list[tuple[Any, int, int]] = []  # Their metrics, steps and first step: not read yet.

    def read(calls: list[tuple[Any, int, int]]) -> None:
      nonlocal sums, position
      for metrics, count, first in calls:
        metrics = jax.device_get(metrics)
        _check_finite(metrics, count, first, checkpoints)
        sums = _add(sums, metrics, count)
        if position.first_call_seconds is None:
          position = position._replace(first_call_seconds=time.monotonic() - started)
        bar.update(count)
      calls.clear()

    with bar:
      while position.step < num_steps and not _out_of_patience(position, patience):
        arrays, index, count = next(chunks)
        state, metrics = runner(state, teacher_params, arrays, index, count, key)
        # Metrics are read one call late, so that the device does not wait for the host.
        read(calls)
        calls.append((metrics, count, position.step))
        position = position._replace(step=position.step + count)
        at_validation = position.step % every == 0 or position.step == num_steps
        if at_validation:
          read(calls)
          numbers = {f"train/{n}": float(m.compute()) for n, m in sums.items()}
          sums = {}
          values = {} if validate is None else processes.of_first(validate(state))
          position = _judge(position, values, metric if validate else None, min_best_step)
          position = position._replace(seconds=time.monotonic() - started)
          numbers |= {f"valid/{n}": float(v) for n, v in values.items()}
          # Written before it is saved: killed between the two, a run writes its line again.
          write(position.step, numbers | {"seconds": position.seconds})
          kind = "best" if position.best_step == position.step else "latest"
          checkpoints.save(kind, position.step, state, position._asdict())
          if metric in values:
            bar.set_postfix({metric: f"{values[metric]:.4f}", "best": f"{position.best_value:.4f}"})
        if processes.any_of(bool(stop)):
          read(calls)
          if not at_validation:
            # Saved between validations: the sums so far are lost to the log, not to the training.
            checkpoints.save("latest", position.step, state, position._asdict())
          raise Interrupted(f"stopped by SIGTERM at step {position.step}; run again to resume")
    if position.best_step != position.step:
      state, _ = checkpoints.restore("best", state)
    return state, position


def _chunks(
  feed: Feed, start: int, num_steps: int, every: int, steps_per_call: int
) -> Iterator[tuple[Any, np.ndarray, int]]:
  """Arrays, which rows of them each step takes, and how many steps, from step `start` on.

  A chunk ends with its epoch and at every validation, so that a resumed run makes the same chunks,
  and where batches are cut to their lengths, before one of another length.
  """
  per_epoch, batch_size = feed.steps_per_epoch, min(feed.batch_size, feed.num_rows)
  if feed.resident:
    whole = placement.put_rows(feed.arrays, feed.mesh)

    @functools.cache
    def resident(length: int | None) -> dict[str, Array]:
      """The rows with so many columns."""
      cut = {name: feed.arrays[name][..., :length] for name in feed.cut}
      return whole if length is None else {**whole, **placement.put_rows(cut, feed.mesh)}

  elif feed.lengths is not None:
    raise ValueError("rows that are streamed are not grouped by length; keep them resident")
  else:
    epochs = -(-num_steps // per_epoch)
    stream = batches.stream(
      feed.arrays,
      feed.batch_size,
      seed=feed.seed,
      num_epochs=epochs,
      start=start,
      own=placement.own_rows(batch_size, feed.mesh),
    )
    streamed = np.arange(steps_per_call * batch_size, dtype=np.int32).reshape(batch_size, -1).T
  step, order_epoch, order = start, -1, np.empty((0, batch_size), np.int32)
  while step < num_steps:
    epoch, nth = divmod(step, per_epoch)
    count = min(steps_per_call, per_epoch - nth, every - step % every, num_steps - step)
    if feed.resident:
      if epoch != order_epoch:
        order = batches.epoch_order(
          feed.num_rows, batch_size, seed=feed.seed, epoch=epoch, lengths=feed.lengths
        )
        order_epoch = epoch
      length = None
      if feed.lengths is not None:
        needed = feed.lengths[order[nth : nth + count]].max(axis=1)
        length, count = int(needed[0]), int(np.argmin(np.append(needed == needed[0], False)))
      index = np.zeros((steps_per_call, batch_size), np.int32)
      index[:count] = order[nth : nth + count]
      yield resident(length), index, count
    else:
      rows = [next(stream) for _ in range(count)]
      rows += [rows[0]] * (steps_per_call - count)  # One shape for every chunk: never run.
      own = {name: np.stack([r[name] for r in rows], axis=1) for name in rows[0]}
      arrays = {n: placement.put_own_rows(v, batch_size, feed.mesh) for n, v in own.items()}
      yield arrays, streamed, count
    step += count


def _add(sums: dict[str, Mean], metrics: Mapping[str, Any], count: int) -> dict[str, Mean]:
  added = {}
  for name, value in metrics.items():
    if isinstance(value, Mean):
      new = Mean(np.sum(value.total[:count]), np.sum(value.count[:count]))
    else:
      new = Mean(np.sum(value[:count]), np.float32(count))
    added[name] = sums[name] + new if name in sums else new
  return added


def _check_batch(saved: Progress, batch_size: int) -> None:
  if saved.batch_size not in (0, batch_size):
    raise CheckpointError(
      f"the steps so far had {saved.batch_size} rows, now they have {batch_size}: a batch is a "
      "multiple of --accumulate times the devices that share it (--data_devices x --fsdp_devices); "
      f"use as many as divide {saved.batch_size}, or a new --workdir"
    )


def _check_finite(
  metrics: Mapping[str, Any], count: int, step: int, checkpoints: Checkpoints
) -> None:
  """Names the first step and the terms that are not finite."""
  values = {
    n: np.asarray(m.total if isinstance(m, Mean) else m)[:count] for n, m in metrics.items()
  }
  bad = {name: np.flatnonzero(~np.isfinite(value)) for name, value in values.items()}
  bad = {name: steps for name, steps in bad.items() if len(steps)}
  if not bad:
    return
  first = min(steps[0] for steps in bad.values())
  names = sorted(name for name, steps in bad.items() if steps[0] == first)
  newest = checkpoints.newest()
  good = newest and checkpoints.path(newest)
  raise NonFiniteError(
    f"not finite at step {step + int(first) + 1}: {', '.join(names)}; the last good checkpoint is "
    f"{good if good else 'none (it failed before the first one)'}. Lower --learning_rate, set "
    "--clip_norm, or use --dtype=float32"
  )


def _judge(
  position: Progress, values: Mapping[str, float], metric: str | None, min_best_step: int
) -> Progress:
  if metric is None:
    return position._replace(best_step=position.step)
  if metric not in values:
    raise ValueError(f"validation gave {sorted(values)}, not the metric {metric!r}")
  value = float(values[metric])
  if not math.isfinite(value):
    raise NonFiniteError(f"validation {metric} is {value} at step {position.step}")
  if position.step < min_best_step:
    # Kept so that an interrupted run has a best; the first one that counts replaces it.
    return position._replace(best_value=value, best_step=position.step, stale=0)
  fresh = position.best_step < min_best_step
  if position.best_value is None or fresh or value > position.best_value:
    return position._replace(best_value=value, best_step=position.step, stale=0)
  return position._replace(stale=position.stale + 1)


def _out_of_patience(position: Progress, patience: int | None) -> bool:
  return patience is not None and position.stale >= patience


@contextlib.contextmanager
def _sigterm() -> Iterator[list[int]]:
  """A list that is no longer empty once SIGTERM came; outside the main thread it never does."""
  received: list[int] = []
  try:
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
  except ValueError:
    yield received
    return
  try:
    yield received
  finally:
    signal.signal(signal.SIGTERM, before)
