"""What every binary does the same way: workdirs and results."""

import json
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import kdjax
from experiments import families, files, meshes, problems, stored
from experiments.config import DataConfig
from experiments.tasks import Judgement
from kdjax import flags, quant, tree
from kdjax.metrics import statistics
from kdjax.models import hub
from kdjax.models.linen import Sizes
from kdjax.train import processes
from kdjax.types import Params

RESULT_FILE, CASES_FILE = "result.json", "per_case.npz"


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
      raise stored.WorkdirError(
        f"{folder} holds a run with other flags ({listed}); use those to resume it, another "
        "--workdir, or delete the folder"
      )
  processes.wait("open_workdir")  # All have read what was there.
  if processes.is_first():
    flags.save(config, path)
  return folder


def _may_change(flag: str, values: dict[str, Any], *, done: bool) -> bool:
  """Whether a run taken up again may have another value of a flag.

  What is shown, logged and kept for others may always change, the devices too, and so may the
  limits of a search.
  How long to train may, until the run is finished, and only where nothing is scheduled over the
  length of training: neither learning rate nor sparsity, nor the weights or the expert selection of
  --distill_losses.
  """
  shown = (
    "progress",
    "tensorboard",
    "wandb",
    "devices",
    "teacher_mesh",
    "cache_scores",
    "scores_dir",
    "prepared_dir",
  )
  if flag.endswith(shown):
    return True
  if flag.startswith(("max_mb", "max_p99", "max_quality", "search_", "budget_")):
    return True  # Of a search: its trials stay, each in a workdir of its own.
  if flag.endswith("epochs"):
    schedule = values[flag.removesuffix("epochs") + "schedule"]
    entries = values.get("distill_losses", ())
    scheduled = any(">" in e or e.startswith(("experts", "group_topology")) for e in entries)
    return not (done or scheduled) and schedule == "constant" and "sparsity" not in values
  return flag.endswith("patience") and not done


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
  mesh: Mesh | None = None,
) -> dict[str, Any]:
  """Saves a model, judges what was saved on the test part, once, and writes `result.json`.

  It is judged on every device of the mesh, by all processes together.

  Returns:
    The result: `quality` (every metric with a bootstrap 95 % interval where it is a mean of cases),
    `size` (parameters, those that are not 0, bytes on disk) and where it came from.
  """
  if processes.is_first():
    stored.save_model(workdir, family, sizes, params, data)
  processes.wait("save_model")
  saved = stored.load_model(workdir, flag="--workdir", on_host=mesh is not None)
  task = problems.make_task(saved.data, saved.family)
  apply = families.make_model(saved.family, saved.sizes).apply
  judgement = task.judge(*meshes.placed(apply, saved.params, mesh), "test")
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
    "size": size_of(saved),
    "training": training,
    "made_with": {
      "kdjax": kdjax.__version__,
      "jax": jax.__version__,
      "python": platform.python_version(),
      "backend": jax.default_backend(),
      "devices": len(jax.devices()),
      "processes": jax.process_count(),
      "cpus": os.cpu_count(),
    },
  }
  write_result(workdir, result)
  _print_result(result)
  return result


def keep_cases(workdir: pathlib.Path, judgement: Judgement) -> dict[str, Any]:
  """Writes every case's metrics, and sums them up as `quality_of` does."""
  cases: dict[str, Any] = dict(judgement.per_case)
  if processes.is_first():
    np.savez_compressed(workdir / CASES_FILE, **cases)
  return quality_of(judgement)


def quality_of(judgement: Judgement) -> dict[str, Any]:
  """Every metric; means of cases with their bootstrap 95 % intervals."""
  quality: dict[str, Any] = {}
  for name, values in judgement.per_case.items():
    interval = statistics.bootstrap_interval(values, seed=0)
    quality[name] = {
      "value": float(np.mean(values)),
      "low": float(interval.low),
      "high": float(interval.high),
    }
  return quality | {name: {"value": value} for name, value in judgement.scalars.items()}


def size_of(saved: stored.SavedModel) -> dict[str, int]:
  """Parameters, those that are not 0, and bytes on disk."""
  floats = _float_view(saved.params)
  return {
    "parameters": tree.count_params(floats),
    "nonzero": tree.count_nonzero(floats),
    "bytes": sum(path.stat().st_size for path in hub.weights_in(saved.folder)),
  }


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
  if not processes.is_first():
    return
  with files.whole(workdir / RESULT_FILE) as part:
    part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def finished(workdir: pathlib.Path) -> dict[str, Any] | None:
  """The result of a run that has ended, or None.

  Raises:
    stored.WorkdirError: if the file is damaged.
  """
  path = workdir / RESULT_FILE
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except json.JSONDecodeError as error:
    raise stored.WorkdirError(
      f"{path} is damaged ({error}); delete it to judge the run again"
    ) from error
