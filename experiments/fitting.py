"""Fitting by flags: what is trained, what writes of it, and the loop around them."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments import adapters, lazy_rows, meshes, optimizers
from experiments.config import DistillConfig, FitConfig
from experiments.families import make_cached, make_model, serves_integers
from experiments.stored import SavedModel
from experiments.tasks import Judgement, Task
from experiments.teachers import join_teachers
from experiments.validation import LOSS, make_valid_loss
from kdjax import quant, tree
from kdjax.data import batches
from kdjax.models.linen import Sizes
from kdjax.train import (
  balance,
  checkpoint,
  lazy,
  loop,
  objective,
  parallel,
  placement,
  processes,
  state,
  step,
  writers,
)
from kdjax.train.frozen import freeze
from kdjax.train.step import Augment
from kdjax.types import Apply, Array, Batch, Init, Params


class Fitted(NamedTuple):
  """What fitting gives.

  Attributes:
    params: the student's, at the best validation.
    progress: where training ended.
    metric: the validation metric that decided which was the best.
    counts: of its numbers, how many were `trained` and `frozen`.
  """

  params: Params
  progress: loop.Progress
  metric: str
  counts: dict[str, int]


def fit_model(
  task: Task,
  family: str,
  sizes: Sizes,
  fit: FitConfig,
  workdir: pathlib.Path,
  *,
  terms: Sequence[objective.Term],
  teachers: Sequence[SavedModel] = (),
  distill: DistillConfig | None = None,
  start: Params | None = None,
  inherit: Callable[[Params], Params] = lambda params: params,
  last: Callable[[int], optax.GradientTransformation] | None = None,
  min_best: Callable[[int], int] = lambda num_steps: 0,
  predicts: bool = True,
  name: str = "train",
) -> Fitted:
  """Trains a model by the flags, on every device, resuming what the workdir holds.

  Args:
    task: what is learned.
    family: of the student.
    sizes: of the student.
    fit: the flags of training.
    workdir: where checkpoints and metrics go.
    terms: of the objective.
    teachers: trained models of the same task, run live; terms get the outputs of one as they are,
      of several as a tuple.
    distill: how the student learns from them: what of them is kept in memory, and which texts it
      writes itself.
    start: the student's parameters at step 0; fresh ones by default.
    inherit: from fresh parameters to those at step 0, where there is no `start`.
    last: from the number of steps to the last transform of the optimizer chain.
    min_best: from the number of steps to the one before which no validation can win.
    predicts: whether any term reads predictions. Where none does, what the student predicts says
      nothing of its training: where the task has rows for it, the losses on validation rows decide.
    name: of the progress bar.
  """
  if fit.train_bits not in (0, 4, 8):
    raise ValueError(f"--train_bits={fit.train_bits} must be 0, 4 or 8")
  if fit.train_bits and sizes.get("feature_dims"):
    raise ValueError("--train_bits does not go with --item_embeddings: quantise what was folded")
  distill = distill or DistillConfig()
  taught = bool(teachers or distill.teacher_cache)
  read_rows = lazy_rows.make_reads(
    task, family, fit, sizes, distill, taught=taught, pruned=last is not None
  )
  student = make_model(family, sizes, fit.dtype)
  mesh = meshes.run_mesh(fit)
  teacher_mesh = meshes.teacher_mesh(distill, mesh)
  student_apply = meshes.on_mesh(student.apply, mesh)
  judged_apply = meshes.on_mesh(make_model(family, sizes).apply, mesh)  # In float32.
  student_apply = _through_integers(student_apply, fit.train_bits)
  student_apply = adapters.through_adapters(fit, student_apply)
  teacher_apply, teacher_params, arrays = join_teachers(task, fit, distill, teachers, teacher_mesh)
  if teacher_apply is not None:
    teacher_apply = meshes.on_mesh(teacher_apply, teacher_mesh)
  if read_rows is not None and distill.sampled_rest and teacher_apply is not None:
    read_rows = lazy_rows.with_targets(
      read_rows, teacher_apply, teacher_params, int(sizes["num_items"])
    )
  if any(term.memory is not None for term in terms):
    arrays = {**arrays, "row": np.arange(len(next(iter(arrays.values()))), dtype=np.int32)}
  if distill.balance != "fixed" and len(terms) < 2:
    raise ValueError(f"--balance={distill.balance}: there is one loss alone; give several or none")
  if distill.balance == "uncertainty":
    terms = balance.by_uncertainty(terms)
  goal = objective.make_objective(student_apply, terms, teacher_apply=teacher_apply)
  feed = loop.Feed(
    arrays,
    _rows_per_step(task, fit),
    seed=fit.seed,
    resident=not fit.stream,
    mesh=mesh,
    **_by_length(task, fit),
  )
  num_steps = count_steps(task, fit)
  augment = _with_draws(task.augment(fit), num_steps)

  init_key, augment_key, key = jax.random.split(jax.random.key(fit.seed), 3)
  rows = {name: jnp.asarray(values[: fit.accumulate]) for name, values in arrays.items()}
  example = augment(rows, augment_key, jnp.int32(0))
  fresh = None
  if start is None:
    fresh = _fresh(student.init, init_key, example, mesh)
    start = inherit(fresh)
  if fit.lora_rank and last is not None:
    raise ValueError("--lora_rank does not fit pruning: merged, adapters fill what was 0")
  whole = adapters.make_student(fit, start, jax.random.fold_in(init_key, len(terms)), fresh=fresh)
  if said := adapters.describe(fit, whole):
    print(said, flush=True)
  tables = None
  if read_rows is not None:
    read_rows = lazy_rows.existing(read_rows, whole.start)
    tables = lazy_rows.tables_of(read_rows, example)
  tx = optimizers.make_tx(fit, num_steps, None if last is None else last(num_steps), tables)
  if whole.frozen is not None:
    tx = freeze(tx, tree.under("student", select=whole.frozen))
  adapts = None
  if distill.balance == "gradient_norm":
    adapts = balance.Balance()
    if distill.balance_on:
      adapts = balance.Balance(adapters.named(distill.balance_on, whole.start, "balance_on"))
  make_step = functools.partial(
    step.make_train_step,
    goal,
    tx,
    augment=augment,
    sample=_sampler(task, distill, fit, sizes),
    balance=adapts,
    read_rows=read_rows,
    accumulate=fit.accumulate,
  )
  params = goal.init(init_key, whole.start, teacher_params, example)
  memory = goal.init_memory(init_key, whole.start, teacher_params, example)
  if adapts is not None:
    memory[step.BALANCE] = balance.init_balance([term.name for term in terms])
  train_state = state.init_state(params, tx, memory, mesh=mesh)
  teacher_params = meshes.put(teacher_params, teacher_mesh)
  runner: parallel.Runner
  if fit.parallel == "pmap":
    runner = parallel.pmap_runner(make_step, devices=jax.devices()[: meshes.data_devices(fit)])
  else:
    runner = parallel.jit_runner(make_step(), mesh=mesh)

  merge = jax.jit(functools.partial(adapters.merged, fit)) if fit.lora_rank else lambda p: p
  # What no batch has read of late is behind: judged and exported is where Adam would have it.
  settled = (
    jax.jit(lambda s: lazy.catch_up(s.opt_state, s.params))
    if tables is not None
    else lambda s: s.params
  )
  own_params = lambda s: merge(objective.student_params(settled(s)))  # noqa: E731
  served = jax.jit(
    functools.partial(quant.quantize_params, select=serves_integers, bits=fit.train_bits)
  )
  by_loss = None
  if not predicts and task.valid is not None:
    if distill.cache_queries:
      raise ValueError("--cache_queries keeps nothing of validation rows; leave it out here")
    by_loss = make_valid_loss(student_apply, terms, teacher_apply, task.valid, augment, num_steps)
  metric = task.metric if by_loss is None else LOSS

  def validate(train_state: state.TrainState) -> dict[str, float]:
    if by_loss is not None:
      return by_loss(train_state.params, teacher_params)
    params = own_params(train_state)
    return means(task.judge(judged_apply, served(params) if fit.train_bits else params, "valid"))

  latest = _latest_step(workdir)
  processes.wait("latest_step")  # All have looked before one makes a folder there.
  with writers.join(_writers(fit, workdir, latest) if processes.is_first() else []) as write:
    train_state, progress = loop.fit(
      runner,
      train_state,
      feed,
      num_steps=num_steps,
      key=key,
      workdir=workdir,
      teacher_params=teacher_params,
      validate=validate,
      validate_every=fit.validate_every,
      metric=metric,
      patience=fit.patience,
      min_best_step=min_best(num_steps),
      steps_per_call=fit.steps_per_call or _steps_per_call(family, sizes),
      write=write,
      progress=fit.progress,
      name=name,
    )
  best = tree.to_host(own_params(train_state))
  return Fitted(best, progress, metric, whole.counts)


def _fresh(init: Init, key: Array, example: Batch, mesh: Mesh | None) -> Params:
  """Fresh params; where a mesh splits them, each part is made where it lies."""
  if mesh is None or mesh.shape["fsdp"] * mesh.shape["model"] == 1:
    return init(key, example)
  places = placement.shardings(jax.eval_shape(init, key, example), mesh)
  return jax.jit(init, out_shardings=places)(key, example)


def _writers(fit: FitConfig, workdir: pathlib.Path, latest: int) -> list[Any]:
  """Where the run's numbers go, by the flags."""
  outputs = [writers.jsonl_writer(workdir / "metrics.jsonl", resume_step=latest)]
  if fit.tensorboard:
    outputs.append(writers.tensorboard_writer(workdir / "tensorboard"))
  if fit.wandb != "disabled":
    outputs.append(
      writers.wandb_writer(
        workdir, project="kdjax", name=workdir.name, config=dataclasses.asdict(fit), mode=fit.wandb
      )
    )
  return outputs


def _steps_per_call(family: str, sizes: Sizes) -> int:
  """As --steps_per_call says of not giving it."""
  convolves = {family, sizes.get("encoder")} & {"resnet", "text_cnn"}
  return 1 if convolves and jax.default_backend() == "cpu" else 32


def _through_integers(apply: Apply, bits: int) -> Apply:
  """The model on weights as they will be served; the gradient passes to the float params."""
  if not bits:
    return apply

  def trained(params, batch, *, key=None):
    outputs = apply(_rounded(params, bits), batch, key=key)
    return outputs._replace(logits=quant.as_served(outputs.logits))

  return trained


def _sampler(
  task: Task, distill: DistillConfig, fit: FitConfig, sizes: Sizes
) -> step.Sample | None:
  """What the student writes itself, by --on_policy; of the weights that it is trained through."""
  if not distill.on_policy or task.sampler is None:
    return None
  sample = task.sampler(distill, make_cached(sizes, fit.dtype))

  def written(params: Params, batch: Batch, key: Array) -> Batch:
    params = adapters.merged(fit, params)
    return sample(_rounded(params, fit.train_bits) if fit.train_bits else params, batch, key)

  return written


def _rounded(params: Params, bits: int) -> Params:
  return quant.straight_through_params(params, select=serves_integers, bits=bits)


def _with_draws(augment: Callable[[Batch, Array], Batch] | None, num_steps: int) -> Augment:
  """Random bits for the terms that draw, and the share of the training that is done.

  A number a row, so that they split as rows do.
  """

  def draw(batch, key, count):
    own, key = jax.random.split(key)
    batch = batch if augment is None else augment(batch, own)
    rows = len(next(iter(batch.values())))
    noise = jax.random.bits(key, (rows,), "uint32")
    return {**batch, "noise": noise, "progress": jnp.full(rows, count / num_steps, jnp.float32)}

  return draw


def _by_length(task: Task, fit: FitConfig) -> dict[str, Any]:
  """What `loop.Feed` must know to group texts by length."""
  if not fit.group_by_length:
    return {}
  if task.lengths is None or fit.stream:
    raise ValueError(
      "--group_by_length is for classes of texts (--model=bert, text_gru, text_cnn or static) and "
      "for search, with rows that are kept in memory: histories, and texts whose tokens are "
      "learned, share rows already; leave it out, or --stream"
    )
  longest = task.arrays[task.cut[0]].shape[-1]
  return {
    "cut": task.cut,
    "lengths": batches.round_lengths(task.lengths, longest, per_octave=2),
  }


def _rows_per_step(task: Task, fit: FitConfig) -> int:
  return task.rows_per_step(fit.batch_size, multiple=fit.accumulate * meshes.data_devices(fit))


def count_steps(task: Task, fit: FitConfig) -> int:
  """Steps of a whole training by these flags."""
  rows = len(next(iter(task.arrays.values())))
  return fit.epochs * batches.steps_per_epoch(rows, _rows_per_step(task, fit))


def _latest_step(workdir: pathlib.Path) -> int:
  folder = workdir / "checkpoints"
  if not folder.exists():
    return 0
  with checkpoint.open_checkpoints(folder) as checkpoints:
    newest = checkpoints.newest()
    return (newest and checkpoints.step(newest)) or 0


def means(judgement: Judgement) -> dict[str, float]:
  """Every metric as one number."""
  return {name: float(np.mean(v)) for name, v in judgement.per_case.items()} | judgement.scalars


def summarise_training(fitted: Fitted) -> dict[str, Any]:
  """What `result.json` says of the training."""
  progress = fitted.progress
  return {
    "steps": progress.step,
    "best_step": progress.best_step,
    "best_valid": progress.best_value,
    "decided_by": fitted.metric,
    "parameters": fitted.counts,
    "seconds": round(progress.seconds, 2),
    "first_call_seconds": round(progress.first_call_seconds or 0.0, 2),
  }
