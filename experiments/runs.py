"""What every training binary does the same way: workdirs, models on disk, fitting, results."""

import dataclasses
import functools
import json
import os
import pathlib
import platform
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import kdjax
from experiments import clicks, pairs, sequences
from experiments.config import DataConfig, FitConfig, ModelConfig
from experiments.tasks import CLICK_FAMILIES, PAIR_FAMILIES, SEQUENCE_FAMILIES, Judgement, Task
from kdjax import flags, models, quant, store, tree
from kdjax.data import ids, interactions, sources, summary, synthetic
from kdjax.metrics import statistics
from kdjax.models.linen import Sizes
from kdjax.train import checkpoint, loop, objective, parallel, state, step, writers
from kdjax.types import Model, Params

MODEL_FILE, RESULT_FILE, CASES_FILE = "model.safetensors", "result.json", "per_case.npz"
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class WorkdirError(ValueError):
  """A workdir that cannot be used as asked; the message says what to do."""


def open_workdir(workdir: str | pathlib.Path, config: Any) -> pathlib.Path:
  """Makes the workdir, or takes up the run in it if that was started with the same flags.

  Raises:
    WorkdirError: naming the flags that differ, if another run lives there.
  """
  folder = pathlib.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "config.json"
  if path.exists():
    before = flags.flat(flags.load(type(config), path))
    now = flags.flat(config)
    changed = [name for name in now if now[name] != before[name] and name not in _HARMLESS]
    if changed:
      listed = ", ".join(f"--{name} was {before[name]!r}, is {now[name]!r}" for name in changed)
      raise WorkdirError(
        f"{folder} holds a run with other flags ({listed}); use those to resume it, another "
        "--workdir, or delete the folder"
      )
  flags.save(config, path)
  return folder


# Flags that change neither parameters nor numbers, so a resumed run may have others.
_HARMLESS = frozenset({"progress", "tensorboard", "wandb", "patience", "epochs"})


@functools.lru_cache(maxsize=2)
def load_data(config: DataConfig) -> interactions.Dataset:
  """The prepared log; kept, so that the stages of one process read it once.

  Raises:
    DataError: naming file, line and mend.
  """
  if config.dataset == "synthetic":
    log = synthetic.generate(
      num_users=config.synthetic_users,
      num_items=config.synthetic_items,
      mean_length=config.synthetic_length,
      seed=config.data_seed,
    )
  else:
    log = sources.load(
      config.dataset,
      format=config.format,
      separator=config.separator,
      user_column=config.user_column,
      item_column=config.item_column,
      timestamp_column=config.timestamp_column,
      rating_column=config.rating_column,
      label_column=config.label_column,
      items_path=config.items_path,
    )
  return interactions.prepare(
    log,
    min_rating=config.min_rating,
    min_label_rating=config.label_threshold,
    k_core=config.k_core,
    deduplicate=config.deduplicate,
    min_sequence=config.min_sequence,
    split=config.split,
    valid_fraction=config.valid_fraction,
    test_fraction=config.test_fraction,
  )


@functools.lru_cache(maxsize=4)
def make_task(config: DataConfig, family: str) -> Task:
  """The task that a family learns on the configured data."""
  dataset = load_data(config)
  if family in SEQUENCE_FAMILIES:
    return sequences.make_task(dataset, config, family)
  if family in PAIR_FAMILIES:
    return pairs.make_task(dataset, config, family)
  assert family in CLICK_FAMILIES, family
  return clicks.make_task(dataset, config, family)


def describe_data(config: DataConfig, workdir: pathlib.Path) -> None:
  """Prints the summary of the data and saves its id maps with the run."""
  dataset = load_data(config)
  ids.save_ids(dataset, workdir / "ids")
  print(summary.format_summary(dataset.summary), flush=True)


def model_sizes(config: ModelConfig, task: Task) -> Sizes:
  """The arguments of `make_<family>`: what the data decides, and what the flags ask for.

  Raises:
    ValueError: naming the flag that does not fit.
  """
  family, dim = config.model, config.dim
  mlp_dim = config.mlp_dim or 4 * dim
  if family in ("sasrec", "bert4rec") and dim % config.heads:
    raise ValueError(f"--heads={config.heads} does not divide --dim={dim}")
  sizes: Sizes = {**task.sizes, "dropout": config.dropout}
  if family in ("sasrec", "bert4rec"):
    return sizes | {
      "dim": dim,
      "num_layers": config.layers,
      "num_heads": config.heads,
      "mlp_dim": mlp_dim,
    }
  if family == "gru4rec":
    return _without(sizes, "max_length") | {"dim": dim, "num_layers": config.layers}
  if family == "two_tower":
    return _without(sizes, "max_length") | {"dim": dim, "hidden": (mlp_dim,) * config.layers}
  if family == "mf":
    return _without(sizes, "dropout") | {"dim": dim}
  if family == "ncf":
    return sizes | {"dim": dim, "hidden": tuple(max(mlp_dim >> i, 1) for i in range(config.layers))}
  return sizes | {"dim": dim, "hidden": (mlp_dim,) * config.layers}


def _without(sizes: Sizes, *names: str) -> Sizes:
  return {name: size for name, size in sizes.items() if name not in names}


def make_model(family: str, sizes: Sizes, dtype: str = "float32") -> Model:
  """The model of a family and sizes, computing in `dtype`."""
  return _make_model(family, json.dumps(sizes, sort_keys=True), dtype)


@functools.lru_cache(maxsize=16)
def _make_model(family: str, sizes: str, dtype: str) -> Model:
  # The same model is the same function, so that what was compiled for it is found again.
  make = getattr(models, f"make_{family}")
  arguments = {n: tuple(v) if isinstance(v, list) else v for n, v in json.loads(sizes).items()}
  return make(**arguments, dtype=_DTYPES[dtype])


class SavedModel(NamedTuple):
  """A model as a workdir holds it."""

  folder: pathlib.Path
  family: str
  sizes: Sizes
  params: Params
  data: DataConfig


def save_model(
  folder: pathlib.Path, family: str, sizes: Sizes, params: Params, data: DataConfig
) -> None:
  """Writes `model.safetensors`, whose header says all that is needed to build the model again."""
  metadata = {
    "family": family,
    "sizes": json.dumps(sizes),
    "data": json.dumps(dataclasses.asdict(data)),
  }
  store.save_params(folder / MODEL_FILE, params, metadata=metadata)


def load_model(folder: str | pathlib.Path, *, flag: str) -> SavedModel:
  """Reads a finished run's model.

  Raises:
    WorkdirError: naming the flag, if the folder holds none.
    StoreError: if the file is damaged.
  """
  path = pathlib.Path(folder) / MODEL_FILE
  if not path.exists():
    raise WorkdirError(
      f"{flag}: no {MODEL_FILE} in {str(folder)!r}; give the workdir of a finished "
      "experiments.train, distill, prune or quantize"
    )
  params, metadata = store.load_params(path)
  return SavedModel(
    pathlib.Path(folder),
    metadata["family"],
    json.loads(metadata["sizes"]),
    params,
    flags.from_dict(DataConfig, json.loads(metadata["data"])),
  )


def check_teacher(teacher: SavedModel, task: Task, data: DataConfig) -> None:
  """Refuses a teacher of another task or another catalogue.

  Raises:
    ValueError: saying which.
  """
  other = make_task(data, teacher.family)
  if other.name != task.name:
    raise ValueError(
      f"--teacher={teacher.folder} is a {teacher.family} ({other.name} task), the student learns "
      f"the {task.name} task; both must be of one task"
    )
  for name in ("num_items", "num_users", "cardinalities"):
    theirs, ours = teacher.sizes.get(name), task.sizes.get(name)
    if name in teacher.sizes and name in task.sizes and _plain(theirs) != _plain(ours):
      raise ValueError(
        f"--teacher={teacher.folder} was trained on other data: {name} is {theirs}, here {ours}"
      )


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value


def make_tx(
  fit: FitConfig, num_steps: int, last: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
  """Clipping, the optimizer with its schedule, and `last` (a pruning transform), in this order."""
  warmup = min(fit.warmup_steps, num_steps // 10)
  peak = fit.learning_rate
  if fit.schedule == "cosine":
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(num_steps, warmup + 1))
  else:
    rate = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
  decay = {"weight_decay": fit.weight_decay, "mask": _matrices}
  optimizer = {
    "adam": lambda: optax.adam(rate),
    "adamw": lambda: optax.adamw(rate, **decay),
    "adagrad": lambda: optax.adagrad(rate),
    "lion": lambda: optax.lion(rate, **decay),
    "sgd": lambda: optax.sgd(rate, momentum=0.9),
  }[fit.optimizer]()
  clip = [] if fit.clip_norm is None else [optax.clip_by_global_norm(fit.clip_norm)]
  return optax.chain(*clip, optimizer, *([] if last is None else [last]))


def _matrices(params: Params) -> Params:
  return tree.map_with_path(tree.is_matrix, params)


class Fitted(NamedTuple):
  """What fitting gives.

  Attributes:
    params: the student's, at the best validation.
    sizes: of the student.
    progress: where training ended.
    state: the whole state at the best validation.
  """

  params: Params
  sizes: Sizes
  progress: loop.Progress
  state: state.TrainState


def fit_model(
  task: Task,
  family: str,
  sizes: Sizes,
  fit: FitConfig,
  workdir: pathlib.Path,
  *,
  terms: Sequence[objective.Term],
  teacher: SavedModel | None = None,
  start: Params | None = None,
  last: Callable[[int], optax.GradientTransformation] | None = None,
  min_best: Callable[[int], int] = lambda num_steps: 0,
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
    teacher: a trained model of the same task, run live.
    start: the student's parameters at step 0; fresh ones by default.
    last: from the number of steps to the last transform of the optimizer chain.
    min_best: from the number of steps to the one before which no validation can win.
    name: of the progress bar.
  """
  student = make_model(family, sizes, fit.dtype)
  judged = make_model(family, sizes)  # Validation and test compute in float32.
  teacher_model = None if teacher is None else make_model(teacher.family, teacher.sizes, fit.dtype)
  goal = objective.make_objective(
    student.apply, terms, teacher_apply=None if teacher_model is None else teacher_model.apply
  )
  feed = loop.Feed(
    task.arrays,
    task.rows_per_step(fit.batch_size, multiple=fit.accumulate * _data_devices(fit)),
    seed=fit.seed,
    resident=not fit.stream,
  )
  num_steps = fit.epochs * feed.steps_per_epoch
  tx = make_tx(fit, num_steps, None if last is None else last(num_steps))
  augment = task.augment(fit)
  make_step = functools.partial(
    step.make_train_step, goal, tx, augment=augment, accumulate=fit.accumulate
  )

  init_key, augment_key, key = jax.random.split(jax.random.key(fit.seed), 3)
  example = jax.tree.map(jnp.asarray, task.example(fit.accumulate))
  if augment is not None:
    example = augment(example, augment_key)
  if start is None:
    start = student.init(init_key, example)
  teacher_params = None if teacher is None else jax.tree.map(jnp.asarray, teacher.params)
  params = goal.init(init_key, start, teacher_params, example)
  train_state = state.init_state(params, tx)

  runner: parallel.Runner
  if fit.parallel == "pmap":
    runner = parallel.pmap_runner(make_step, devices=jax.devices()[: fit.data_devices])
  else:
    mesh = _mesh(fit)
    runner = parallel.jit_runner(make_step(), mesh=mesh)
    if mesh is not None:
      place = lambda t: jax.device_put(t, parallel.shardings(t, mesh, select=_is_table))  # noqa: E731
      train_state, teacher_params = place(train_state), place(teacher_params)

  def validate(train_state: state.TrainState) -> dict[str, float]:
    judgement = task.judge(judged.apply, objective.student_params(train_state.params), "valid")
    return means(judgement)

  latest = _latest_step(workdir)
  outputs = [writers.jsonl_writer(workdir / "metrics.jsonl", resume_step=latest)]
  if fit.tensorboard:
    outputs.append(writers.tensorboard_writer(workdir / "tensorboard"))
  if fit.wandb != "disabled":
    outputs.append(
      writers.wandb_writer(
        workdir, project="kdjax", name=workdir.name, config=dataclasses.asdict(fit), mode=fit.wandb
      )
    )
  with writers.join(outputs) as write:
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
      metric=task.metric,
      patience=fit.patience,
      min_best_step=min_best(num_steps),
      steps_per_call=fit.steps_per_call,
      write=write,
      progress=fit.progress,
      name=name,
    )
  best = jax.device_get(objective.student_params(train_state.params))
  return Fitted(best, sizes, progress, train_state)


def _data_devices(fit: FitConfig) -> int:
  """How many devices share a batch."""
  if fit.data_devices is not None:
    return fit.data_devices
  return max(1, len(jax.devices()) // (1 if fit.parallel == "pmap" else fit.model_devices))


def _mesh(fit: FitConfig):
  """The mesh that the flags ask for, None on a single device."""
  data = _data_devices(fit)
  if data * fit.model_devices == 1:
    return None
  return parallel.make_mesh(data=data, model=fit.model_devices)


def _is_table(path: tree.Path, leaf: Any) -> bool:
  return path[-1] == "embedding" and jnp.ndim(leaf) == 2


def _latest_step(workdir: pathlib.Path) -> int:
  folder = workdir / "checkpoints"
  if not folder.exists():
    return 0
  with checkpoint.open_checkpoints(folder) as checkpoints:
    return checkpoints.step("latest") or 0


def means(judgement: Judgement) -> dict[str, float]:
  """Every metric as one number."""
  return {name: float(np.mean(v)) for name, v in judgement.per_case.items()} | judgement.scalars


def finish(
  job: str,
  workdir: pathlib.Path,
  family: str,
  sizes: Sizes,
  params: Params,
  data: DataConfig,
  *,
  seed: int,
  training: dict[str, Any],
) -> dict[str, Any]:
  """Saves a model, judges what was saved on the test part, once, and writes `result.json`.

  Returns:
    The result: `quality` (every metric with a bootstrap 95 % interval where it is a mean of cases),
    `size` (parameters, those that are not 0, bytes on disk) and where it came from.
  """
  save_model(workdir, family, sizes, params, data)
  saved = load_model(workdir, flag="--workdir")
  task = make_task(saved.data, saved.family)
  model = make_model(saved.family, saved.sizes)
  judgement = task.judge(model.apply, saved.params, "test")
  quality: dict[str, Any] = {}
  for name, values in judgement.per_case.items():
    interval = statistics.bootstrap_interval(values, seed=0)
    quality[name] = {
      "value": float(np.mean(values)),
      "low": float(interval.low),
      "high": float(interval.high),
    }
  quality |= {name: {"value": value} for name, value in judgement.scalars.items()}
  cases: dict[str, Any] = dict(judgement.per_case)
  np.savez_compressed(workdir / CASES_FILE, **cases)
  result = {
    "job": job,
    "family": saved.family,
    "task": task.name,
    "metric": task.metric,
    "dataset": saved.data.dataset,
    "seed": seed,
    "sizes": saved.sizes,
    "quality": quality,
    "cases": len(next(iter(judgement.per_case.values()))),
    "size": {
      "parameters": tree.count_params(_float_view(saved.params)),
      "nonzero": tree.count_nonzero(_float_view(saved.params)),
      "bytes": (workdir / MODEL_FILE).stat().st_size,
    },
    "training": training,
    "made_with": {
      "kdjax": kdjax.__version__,
      "jax": jax.__version__,
      "python": platform.python_version(),
      "backend": jax.default_backend(),
      "devices": len(jax.devices()),
      "cpus": os.cpu_count(),
    },
  }
  write_result(workdir, result)
  _print_result(result)
  return result


def _print_result(result: dict[str, Any]) -> None:
  """The few lines a person wants after a single-model job."""
  quality, size = result["quality"], result["size"]
  shown = {name: values for name, values in quality.items() if name.endswith("@10")} or quality
  for name, values in shown.items():
    interval = f"  [{values['low']:.4f}, {values['high']:.4f}]" if "low" in values else ""
    print(f"test {name:14s} {values['value']:.4f}{interval}")
  numbers = f"{size['parameters']:,} ({size['nonzero']:,} not 0)"
  print(f"parameters {numbers}, {size['bytes'] / 1e6:.3f} MB", flush=True)


def _float_view(params: Params) -> Params:
  """Parameters as the numbers they stand for: a QTensor is its int8 values, its scales overhead."""
  return jax.tree.map(
    lambda x: x.values if quant.is_qtensor(x) else x, params, is_leaf=quant.is_qtensor
  )


def write_result(workdir: pathlib.Path, result: dict[str, Any]) -> None:
  """Writes `result.json` whole or not at all: it marks the run as finished."""
  temporary = workdir / f"{RESULT_FILE}.partial"
  temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
  temporary.replace(workdir / RESULT_FILE)


def finished(workdir: pathlib.Path) -> dict[str, Any] | None:
  """The result of a run that has ended, or None.

  Raises:
    WorkdirError: if the file is damaged.
  """
  path = workdir / RESULT_FILE
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except json.JSONDecodeError as error:
    raise WorkdirError(f"{path} is damaged ({error}); delete it to judge the run again") from error


def summarise_training(fitted: Fitted) -> dict[str, Any]:
  """What `result.json` says of the training."""
  progress = fitted.progress
  return {
    "steps": progress.step,
    "best_step": progress.best_step,
    "best_valid": progress.best_value,
    "seconds": round(progress.seconds, 2),
  }
