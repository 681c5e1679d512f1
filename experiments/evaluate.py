"""Judges and times trained models side by side, and compares each with its teacher.

python -m experiments.evaluate --workdir=runs/eval --models=runs/teacher,runs/student,runs/int8
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import families, head_terms, meshes, prepared, problems, ranking, runs, stored
from experiments.config import MeshConfig
from experiments.tasks import Judgement
from kdjax import cost, metrics, report
from kdjax.flags import group, option
from kdjax.models import hub
from kdjax.types import Apply, Params

AGREEMENT_CASES = 1024  # Users (or clicks) on which KL and Kendall's tau are measured.


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.evaluate."""

  models: tuple[str, ...] = option(
    (), "Workdirs of trained models, perhaps Hugging Face folders; the first is the teacher."
  )
  names: tuple[str, ...] = option((), "What the table calls them; their folders' names by default.")
  requests: int = option(200, "Timed single requests of each model.", lower=1)
  batches: int = option(20, "Timed batches of 256 requests of each model.", lower=1)
  sampled_negatives: int = option(
    0,
    "Also rank against this many sampled negatives. Such figures are far higher than those over "
    "the whole catalogue and not comparable with them; their names begin with 'sampled'.",
    lower=0,
  )
  print_table: bool = option(True, "Print the table.")
  seed: int = option(0, "Seed of sampled negatives and of the paired test.")
  # One device: that is what most models are served on, and timed as they are served.
  mesh: MeshConfig = group(MeshConfig, data_devices=1)


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Measures every model and writes `result.json` with one row a model, printed as a table."""
  folder = runs.open_workdir(workdir, config)
  if not config.models:
    raise ValueError("--models is empty; give the workdirs of trained models")
  names = config.names or tuple(pathlib.Path(model).name for model in config.models)
  if len(names) != len(config.models):
    raise ValueError(f"--names has {len(names)} names for {len(config.models)} --models")
  mesh = meshes.mesh_of(config.mesh)
  loaded = load_models(config.models, on_host=mesh is not None)
  splits = [prepared.split_of(saved.data) for saved in loaded.values()]
  if any(split != splits[0] for split in splits):
    raise ValueError("--models were trained on different data or splits; judge them apart")

  costs = measure(loaded, config, mesh)
  rows, teacher = [], None
  for name, (model, saved) in zip(names, loaded.items(), strict=True):
    task = problems.make_task(saved.data, saved.family)
    judgement = task.judge(*_placed(saved, mesh), "test")
    result = _untrained(saved, judgement, task.metric) or runs.finished(saved.folder)
    if result is None:
      raise stored.WorkdirError(f"{saved.folder} is not finished: run its job again")
    row = {"name": name, **{k: result[k] for k in ("job", "seed", "metric", "quality", "size")}}
    # Parameters and bytes stand under `size`, where int8 scales do not count as parameters.
    measured = costs[model]._asdict()
    row["cost"] = {name: measured[name] for name in measured if not name.startswith("num_")}
    if teacher is None:
      teacher = judgement
    else:
      row["agreement"] = agreement(judgement, teacher)
      if judgement.heads and teacher.queries is not None:
        row["agreement"] |= head_terms.agreement(judgement.heads, teacher.queries)
      row["against_teacher"] = compare(judgement, teacher, result["metric"], config.seed)
    if config.sampled_negatives:
      row["sampled"] = sampled(saved, judgement, config)
    rows.append(row)
  result = {"job": "evaluate", "metric": rows[0]["metric"], "rows": rows}
  runs.write_result(folder, result)
  if config.print_table:
    print(report.to_markdown(report.summarise(rows)))
  return result


def load_models(models: Sequence[str], *, on_host: bool = False) -> dict[str, stored.SavedModel]:
  """The models by what the flag calls them; checkpoint folders on the data of the first workdir.

  Raises:
    ValueError: if there is no workdir. Others as `stored.load_teacher`.
  """
  trained = [model for model in models if not hub.is_checkpoint(model)]
  if not trained:
    raise ValueError(
      "--models are Hugging Face folders alone: add the workdir of a trained model, whose data and "
      "task judge them"
    )
  first = stored.load_model(trained[0], flag="--models", on_host=on_host)
  return {
    model: stored.load_teacher(model, first.data, first.family, flag="--models", on_host=on_host)
    for model in models
  }


def _placed(saved: stored.SavedModel, mesh: Mesh | None) -> tuple[Apply, Params]:
  return meshes.placed(families.make_model(saved.family, saved.sizes).apply, saved.params, mesh)


def _untrained(
  saved: stored.SavedModel, judgement: Judgement, metric: str
) -> dict[str, Any] | None:
  """What `result.json` would say of a checkpoint folder; None for a workdir."""
  if not hub.is_checkpoint(saved.folder):
    return None
  own = {"job": "pretrained", "seed": 0, "metric": metric}
  return own | {"quality": runs.quality_of(judgement), "size": runs.size_of(saved)}


def measure(
  loaded: dict[str, stored.SavedModel], config: Config, mesh: Mesh | None = None
) -> dict[str, cost.Cost]:
  """The cost of each model, timed in turns so that a noisy machine is fair to all."""
  candidates = {}
  for name, saved in loaded.items():
    task = problems.make_task(saved.data, saved.family)
    apply, params = _placed(saved, mesh)
    candidates[name] = cost.Candidate(task.serve(apply), params, task.request)
  return cost.measure_many(candidates, num_requests=config.requests, num_batches=config.batches)


def agreement(student: Judgement, teacher: Judgement) -> dict[str, float]:
  """How much alike student and teacher are on the test part.

  Returns:
    For rankers `overlap@10` over all users, and over evenly spaced ones the KL of the catalogue's
    softmax and Kendall's tau on the teacher's ten best; for clicks and images KL and tau.
  """
  count = len(next(iter(teacher.per_case.values())))
  cases = np.unique(np.linspace(0, count - 1, min(count, AGREEMENT_CASES)).astype(np.int64))
  if teacher.top_k is None or student.top_k is None:
    ours, theirs = student.scores(cases), teacher.scores(cases)
    kl = metrics.kl_metric(_as_classes(ours), _as_classes(theirs))
    return {"kl": float(kl), "kendall": float(metrics.kendall_metric(ours, theirs))}
  kls, taus = [], []
  for block in np.array_split(cases, max(1, len(cases) // 64)):
    ours, theirs = student.scores(block), teacher.scores(block)
    best = jnp.maximum(jnp.asarray(teacher.top_k[block]), 0)
    kls.append(np.asarray(metrics.kl_metric(ours, theirs, reduce_fn=None)))
    pair = (jnp.take_along_axis(scores, best, axis=1) for scores in (ours, theirs))
    taus.append(np.asarray(metrics.kendall_metric(*pair, reduce_fn=None)))
  overlap = metrics.overlap_metric(jnp.asarray(student.top_k), jnp.asarray(teacher.top_k))
  return {
    f"overlap@{ranking.LIST}": float(overlap),
    "kl": float(np.mean(np.concatenate(kls))),
    f"kendall@{ranking.LIST}": float(np.mean(np.concatenate(taus))),
  }


def _as_classes(logits: Any) -> Any:
  """Logits of classes; one logit an event is that of the second of two."""
  return logits if logits.ndim == 2 else jnp.stack([jnp.zeros_like(logits), logits], axis=-1)


def compare(a: Judgement, b: Judgement, metric: str, seed: int) -> dict[str, Any]:
  """A paired test on the cases: difference a - b, its 95 % interval and the p-value."""
  name = metric if metric in a.per_case else next(iter(a.per_case))
  found = metrics.paired_test(a.per_case[name], b.per_case[name], seed=seed)
  return {"metric": name, **found._asdict()}


def sampled(saved: stored.SavedModel, judgement: Judgement, config: Config) -> dict[str, float]:
  """Metrics against sampled negatives, by names that say so.

  Raises:
    ValueError: for models without one query a user.
  """
  if judgement.queries is None:
    raise ValueError(f"--sampled_negatives does not fit a {saved.family} model")
  return ranking.sampled(
    problems.load_data(saved.data),
    judgement.queries,
    num_negatives=config.sampled_negatives,
    seed=config.seed,
  )


if __name__ == "__main__":
  from experiments import cli

  cli.main(Config, run, "runs/evaluate")
