"""What every binary does the same way: workdirs, data, models on disk, results."""

import dataclasses
import functools
import json
import os
import pathlib
import platform
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kdjax
from experiments import (
  clicks,
  files,
  images,
  language,
  masked_language,
  pairs,
  retrieval,
  sequences,
  speech,
  texts,
)
from experiments.config import DataConfig, ModelConfig
from experiments.tasks import (
  CLICK_FAMILIES,
  IMAGE_FAMILIES,
  LANGUAGE_FAMILIES,
  PAIR_FAMILIES,
  SEARCH_FAMILIES,
  SEQUENCE_FAMILIES,
  SPEECH_FAMILIES,
  TEXT_FAMILIES,
  Judgement,
  Task,
)
from kdjax import flags, models, quant, store, tree
from kdjax.data import ids, interactions, sources, summary, synthetic
from kdjax.data.text import TextDataset
from kdjax.metrics import statistics
from kdjax.models.decoder import Cached
from kdjax.models.linen import Sizes
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
    changed = [name for name in now if now[name] != before[name]]
    done = (folder / RESULT_FILE).exists()
    changed = [name for name in changed if not _may_change(name, now, done=done)]
    if changed:
      listed = ", ".join(f"--{name} was {before[name]!r}, is {now[name]!r}" for name in changed)
      raise WorkdirError(
        f"{folder} holds a run with other flags ({listed}); use those to resume it, another "
        "--workdir, or delete the folder"
      )
  flags.save(config, path)
  return folder


def _may_change(flag: str, values: dict[str, Any], *, done: bool) -> bool:
  """Whether a run taken up again may have another value of a flag.

  What is shown and logged may always change, and so may the limits of a search. How long to train
  may, until the run is finished, and only where nothing is scheduled over the length of training:
  neither learning rate nor sparsity, nor the weights or the expert selection of --distill_losses.
  """
  if flag.endswith(("progress", "tensorboard", "wandb")):
    return True
  if flag.startswith(("max_mb", "max_p99", "max_quality", "search_", "budget_")):
    return True  # Of a search: its trials stay, each in a workdir of its own.
  if flag.endswith("epochs"):
    schedule = values[flag.removesuffix("epochs") + "schedule"]
    entries = values.get("distill_losses", ())
    scheduled = any(">" in e or e.startswith(("experts", "group_topology")) for e in entries)
    return not (done or scheduled) and schedule == "constant" and "sparsity" not in values
  return flag.endswith("patience") and not done


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
  if family in IMAGE_FAMILIES:
    return images.make_task(images.load(config), config, family)
  if family in SPEECH_FAMILIES:
    return speech.make_task(speech.load(config), family)
  if family in SEARCH_FAMILIES:
    return retrieval.make_task(config, family)
  if config.objective == "masked" and family != "bert":
    raise ValueError(f"--objective=masked does not fit --model={family}; use bert")
  if family in (*TEXT_FAMILIES, *LANGUAGE_FAMILIES):
    found = _load_texts(config, family)
    if config.objective == "masked":
      return masked_language.make_task(found, config, family)
    make = texts.make_task if family in TEXT_FAMILIES else language.make_task
    return make(found, config, family)
  dataset = load_data(config)
  if family in SEQUENCE_FAMILIES:
    return sequences.make_task(dataset, config, family)
  if family in PAIR_FAMILIES:
    return pairs.make_task(dataset, config, family)
  assert family in CLICK_FAMILIES, family
  return clicks.make_task(dataset, config, family)


def _load_texts(config: DataConfig, family: str) -> TextDataset:
  """The texts, with labels where they are to be told."""
  return texts.load(config, labels=family in TEXT_FAMILIES and config.objective == "auto")


def describe_data(config: DataConfig, family: str, workdir: pathlib.Path) -> None:
  """Saves what ids, tokens or characters stand for with the run; prints a summary once."""
  if (words := tokenizer_of(config, family)) is not None:
    texts.save_tokenizer(config, workdir, words)
  if family in SEARCH_FAMILIES:
    _print_once(retrieval.describe(retrieval.load(config)))
  elif family in (*TEXT_FAMILIES, *LANGUAGE_FAMILIES):
    _print_once(texts.describe(_load_texts(config, family)))
  elif family in IMAGE_FAMILIES:
    _print_once(images.describe(images.load(config)))
  elif family in SPEECH_FAMILIES:
    found = speech.load(config)
    with files.whole(workdir / "characters.json") as part:
      part.write_text(json.dumps(found.characters) + "\n", encoding="utf-8")
    _print_once(speech.describe(found))
  else:
    ids.save_ids(load_data(config), workdir / "ids")
    _print_once(summary.format_summary(load_data(config).summary))


def tokenizer_of(config: DataConfig, family: str) -> Any:
  """What makes tokens for a family of texts; None for others."""
  if family in SEARCH_FAMILIES:
    return retrieval.tokenizer(config)
  return texts.tokenizer(config) if family in (*TEXT_FAMILIES, *LANGUAGE_FAMILIES) else None


@functools.lru_cache
def _print_once(text: str) -> None:
  print(text, flush=True)


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
  if family in (*TEXT_FAMILIES, *LANGUAGE_FAMILIES):
    return texts.model_sizes(config, sizes)
  if config.fold_item_embeddings and not config.item_embeddings:
    raise ValueError("--fold_item_embeddings needs --item_embeddings, whose adapters it folds")
  if family in SEARCH_FAMILIES:
    return retrieval.model_sizes(config, sizes)
  if config.item_embeddings:
    if family != "sasrec":
      raise ValueError(f"--item_embeddings does not fit --model={family}; use sasrec")
    widths = [texts.read_embeddings(path)[1].shape[1] for path in config.item_embeddings]
    sizes["feature_dims"] = tuple(widths)
    sizes["id_embeddings"] = config.id_embeddings
  elif not config.id_embeddings:
    raise ValueError("--id_embeddings=false needs --item_embeddings: items would be all alike")
  heads = {name: getattr(config, name) for name in models.HEADS if getattr(config, name)}
  if heads and family not in ("sasrec", "gru4rec", "bert4rec"):
    raise ValueError(f"--{next(iter(heads))} does not fit --model={family}; it has no such heads")
  sizes |= heads
  if config.checkpoint:
    raise ValueError(f"--checkpoint does not fit --model={family}; use bert or decoder")
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
  if family == "speech_gru":
    return sizes | {"dim": dim, "hidden_dim": config.mlp_dim or dim, "num_layers": config.layers}
  if family == "resnet":
    dims = tuple(dim << stage for stage in range(3))
    return sizes | {"dims": dims, "blocks": config.layers, "inner_dim": config.mlp_dim}
  if family == "mf":
    return _without(sizes, "dropout") | {"dim": dim}
  if family == "ncf":
    return sizes | {"dim": dim, "hidden": tuple(max(mlp_dim >> i, 1) for i in range(config.layers))}
  return sizes | {"dim": dim, "hidden": (mlp_dim,) * config.layers}


def served(model: ModelConfig, sizes: Sizes, params: Params) -> tuple[Sizes, Params]:
  """What a finished training keeps, by the flags."""
  if not model.fold_item_embeddings:
    return sizes, params
  own, heads = models.split_heads(sizes)
  params, own = models.fold_item_features(params, own)
  return {**own, **heads}, jax.device_get(params)


def _without(sizes: Sizes, *names: str) -> Sizes:
  return {name: size for name, size in sizes.items() if name not in names}


def make_model(family: str, sizes: Sizes, dtype: str = "float32") -> Model:
  """The model of a family and sizes, computing in `dtype`."""
  return _make_model(family, json.dumps(sizes, sort_keys=True), dtype)


@functools.lru_cache(maxsize=16)
def _make_model(family: str, sizes: str, dtype: str) -> Model:
  # The same model is the same function, so that what was compiled for it is found again.
  own, heads = models.split_heads(_arguments(json.loads(sizes)))
  model = getattr(models, f"make_{family}")(**own, dtype=_DTYPES[dtype])
  return models.with_heads(model, **heads) if heads else model


def axes_of(family: str, sizes: Sizes) -> Params:
  """The names of the axes of a family's params."""
  own, heads = models.split_heads(sizes)
  axes = getattr(models, f"{family}_axes")(own)
  return {**axes, "heads": models.head_axes(heads)} if heads else axes


def sizes_after(family: str, params: Params, sizes: Sizes) -> Sizes:
  """The sizes of params that were shrunk."""
  own, heads = models.split_heads(sizes)
  return {**getattr(models, f"{family}_sizes")(params, own), **heads}


def make_cached(sizes: Sizes, dtype: str = "float32") -> Cached:
  """The decoder of these sizes, reading on where it stopped."""
  return models.make_cached(**_arguments(sizes), dtype=_DTYPES[dtype])


def _arguments(sizes: Sizes) -> Sizes:
  """Sizes that JSON made lists of."""
  return {name: tuple(size) if isinstance(size, list) else size for name, size in sizes.items()}


def serves_integers(path: tree.Path, leaf: Any) -> bool:
  """Which leaves are quantised: all matrices but positions.

  Those are few, and added to every embedding: int8 there saves little and costs most.
  """
  return tree.is_matrix(path, leaf) and "position_embedding" not in path


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


def check_teacher(
  teacher: SavedModel, task: Task, data: DataConfig, *, own_tokens: bool = False
) -> None:
  """Refuses a teacher of another task, catalogue or split, and of other tokens unless `own_tokens`.

  Raises:
    ValueError: saying which.
  """
  other = make_task(dataclasses.replace(data, objective=teacher.data.objective), teacher.family)
  if other.name != task.name:
    raise ValueError(
      f"--teacher={teacher.folder} is a {teacher.family} ({other.name} task), the student learns "
      f"the {task.name} task; both must be of one task"
    )
  if (words := tokenizer_of(data, teacher.family)) is not None and not own_tokens:
    mend = ""
    if teacher.family in LANGUAGE_FAMILIES:
      mend = ", or --distill_losses=universal_logit:1 alone, which needs no common tokens (ULD)"
    texts.check_tokenizer(data, teacher.folder, words, mend=mend)
  for name in ("num_items", "num_users", "cardinalities", "num_classes", "num_labels"):
    theirs, ours = teacher.sizes.get(name), task.sizes.get(name)
    if name in teacher.sizes and name in task.sizes and _plain(theirs) != _plain(ours):
      raise ValueError(
        f"--teacher={teacher.folder} was trained on other data: {name} is {theirs}, here {ours}"
      )
  check_split(teacher, data, flag="--teacher")


def check_split(model: SavedModel, data: DataConfig, *, flag: str) -> None:
  """Refuses a model of another split: it has seen what the student is tested on.

  Raises:
    ValueError: naming `flag`, and the flags that differ.
  """
  if changed := _changes(split_of(model.data), split_of(data)):
    raise ValueError(f"{flag}={model.folder} was trained on another split: {changed}")


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
  """Which flags differ, and how."""
  return ", ".join(
    f"--{name} was {before[name]!r}, is {now[name]!r}" for name in now if now[name] != before[name]
  )


def other_split(before: DataConfig, now: DataConfig) -> str:
  """Which flags split the same data in another way; "" for none, and for other data."""
  first, second = (
    {n: v for n, v in split_of(data).items() if n not in ("objective", "label_column")}
    for data in (before, now)
  )
  return _changes(first, second) if first["dataset"] == second["dataset"] else ""


def split_of(data: DataConfig) -> dict[str, Any]:
  """What decides which cases are in which part: of data made from others, that of those."""
  made_from = pathlib.Path(data.dataset) / texts.MADE_FROM
  if made_from.exists():
    data = flags.load(DataConfig, made_from)
  values = dataclasses.asdict(data) | {"dataset": os.path.realpath(data.dataset)}
  kept = ("max_length", "all_windows", "items_path", "tokenizer", "vocab_size")
  searched = ("query_length", "mining", "mined_negatives", "pseudo_queries", "rerank")
  return {n: v for n, v in values.items() if n not in (*kept, *searched)}


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value


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
  quality = keep_cases(workdir, judgement)
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


def keep_cases(workdir: pathlib.Path, judgement: Judgement) -> dict[str, Any]:
  """Writes every case's metrics, and sums them up: means with their bootstrap 95 % intervals."""
  quality: dict[str, Any] = {}
  for name, values in judgement.per_case.items():
    interval = statistics.bootstrap_interval(values, seed=0)
    quality[name] = {
      "value": float(np.mean(values)),
      "low": float(interval.low),
      "high": float(interval.high),
    }
  cases: dict[str, Any] = dict(judgement.per_case)
  np.savez_compressed(workdir / CASES_FILE, **cases)
  return quality | {name: {"value": value} for name, value in judgement.scalars.items()}


def print_quality(quality: dict[str, Any]) -> None:
  """The few metrics a person wants after a job."""
  shown = {name: values for name, values in quality.items() if name.endswith("@10")} or quality
  for name, values in shown.items():
    interval = f"  [{values['low']:.4f}, {values['high']:.4f}]" if "low" in values else ""
    print(f"test {name:14s} {values['value']:.4f}{interval}", flush=True)


def _print_result(result: dict[str, Any]) -> None:
  """The few lines a person wants after a single-model job."""
  print_quality(result["quality"])
  size = result["size"]
  numbers = f"{size['parameters']:,} ({size['nonzero']:,} not 0)"
  print(f"parameters {numbers}, {size['bytes'] / 1e6:.3f} MB", flush=True)


def _float_view(params: Params) -> Params:
  """Parameters as the numbers they stand for: a QTensor is its weights, its scales overhead."""
  return jax.tree.map(
    lambda x: quant.dequantize(x) if quant.is_qtensor(x) else x, params, is_leaf=quant.is_qtensor
  )


def write_result(workdir: pathlib.Path, result: dict[str, Any]) -> None:
  """Writes `result.json` whole or not at all: it marks the run as finished."""
  with files.whole(workdir / RESULT_FILE) as part:
    part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


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
