"""The smallest model under a budget of bytes, latency and quality: what compress searches for.

A trial is a width, a depth, a sparsity and a number of bits. Its student learns from the teacher,
is pruned while it recovers, and is quantised; 4 bits are trained through while it recovers, so that
one objective and one optimizer chain distil, prune and round at once. Trials share what they can:
the same student serves all its sparsities and precisions.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import (
  distill,
  evaluate,
  families,
  fitting,
  problems,
  prune,
  quantize,
  runs,
  stored,
)
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig, PruneConfig
from experiments.tasks import Task
from kdjax import cost, quant, report, store
from kdjax import prune as pruning
from kdjax.flags import option
from kdjax.models.linen import Sizes
from kdjax.types import Params

PLANNED = "planned.json"
# Bytes are foretold from untrained weights: only what is clearly too large is left out for them.
SLACK = 1.1


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """What the searched model must keep to; any of the three starts a search."""

  max_mb: float | None = option(None, "Most MB (10^6 bytes) on disk.", lower=0)
  max_p99_ms: float | None = option(None, "Most ms of 99 % of single requests.", lower=0)
  max_quality_drop: float | None = option(
    None, "Largest share of the teacher's validation metric that may be lost, such as 0.02.",
    upper=1,
  )  # fmt: skip
  budget_steps: int | None = option(
    None, "Training steps that the students of a search may take together; no limit by default.",
    lower=0,
  )  # fmt: skip
  search_dims: tuple[int, ...] = option((16, 32, 48, 64), "Widths of students to try.")
  search_layers: tuple[int, ...] = option((1, 2), "Depths of students to try.")
  search_sparsities: tuple[float, ...] = option(
    (0.0, 0.5, 0.75), "Shares of each weight matrix to set to 0."
  )
  search_bits: tuple[int, ...] = option(
    (32, 8, 4), "Bits of the weights: 32 for float; 4 bits are trained through."
  )

  def asked(self) -> bool:
    """Whether there is anything to search for."""
    return any(x is not None for x in (self.max_mb, self.max_p99_ms, self.max_quality_drop))


class Trial(NamedTuple):
  """One model of the search."""

  dim: int
  layers: int
  sparsity: float
  bits: int

  @property
  def student(self) -> str:
    """Folder of the student that it starts from."""
    return f"dim{self.dim}-layers{self.layers}"

  @property
  def recovered(self) -> str:
    """Folder of that student after pruning, and after training through 4 bits."""
    sparse = f"-sparse{100 * self.sparsity:g}" if self.sparsity else ""
    return self.student + sparse + ("-train4" if self.bits == 4 else "")

  @property
  def name(self) -> str:
    """Folder of the finished model."""
    return self.recovered + ("" if self.bits == 32 else f"-int{self.bits}")


class Setup(NamedTuple):
  """What all trials share."""

  teacher: str
  data: DataConfig
  student: ModelConfig
  fit: FitConfig
  distill: DistillConfig
  prune: PruneConfig
  recovery: FitConfig
  requests: int
  batches: int


def run(search: SearchConfig, setup: Setup, folder: pathlib.Path) -> dict[str, Any]:
  """Trains the cheapest trials first until the budget is spent, judges all, names the smallest.

  Returns:
    The result: rows of teacher and trials, the names on the `frontier`, the `chosen` one or None,
    what is `missed` and by how much, and the trials `left` with their reasons.
  """
  trials = all_trials(search, setup)
  planned = plan(trials, setup, folder / PLANNED)
  left = dict(ruled_out(search, planned))
  task = problems.make_task(setup.data, setup.student.model)
  steps = {"distill": fitting.count_steps(task, setup.fit)}
  steps["prune"] = fitting.count_steps(task, setup.recovery)
  reference = validated(setup.teacher, setup, folder / "teacher.json")
  found: dict[str, dict[str, float]] = {}
  open_trials = [trial for trial in trials if trial.name not in left]
  while open_trials:
    trial = min(open_trials, key=lambda t: urgency(t, search, found, planned, steps, folder))
    open_trials.remove(trial)
    missing = missing_steps(trial, steps, folder)
    if missing and search.budget_steps is not None:
      spent = sum(_steps_taken(path) for path in (folder / "trials").glob("*"))
      if spent + missing > search.budget_steps:
        left[trial.name] = f"--budget_steps={search.budget_steps} are spent ({spent:,} taken)"
        continue
    train_trial(trial, setup, folder / "trials")
    path = folder / "trials" / trial.name
    value = validated(path, setup, path / "valid.json")
    size = (path / stored.MODEL_FILE).stat().st_size
    found[trial.name] = {"valid": value, "drop": 1 - value / reference, "bytes": size}
    print(f"{trial.name}: {size / 1e6:.3f} MB, validation {value:.4f}, "
          f"{found[trial.name]['drop']:.1%} less than the teacher", flush=True)  # fmt: skip
  judged = judge(setup, list(found), folder)
  for row in judged["rows"]:
    if row["name"] in found:
      row["search"] = found[row["name"]] | {"p99_ms": row["cost"]["latency_p99_ms"]}
  result = {
    "job": "search",
    "metric": judged["metric"],
    "limits": {k: v for k, v in dataclasses.asdict(search).items() if k.startswith("max")},
    "teacher_valid": reference,
    "steps": sum(_steps_taken(path) for path in (folder / "trials").glob("*")),
    "left": left,
    "rows": judged["rows"],
    **choose(search, {r["name"]: r["search"] for r in judged["rows"] if "search" in r}),
  }
  _leave_best(result["chosen"], folder)
  return result


def all_trials(search: SearchConfig, setup: Setup) -> list[Trial]:
  """Every combination.

  Raises:
    ValueError: naming the flag that does not fit.
  """
  for name in ("search_dims", "search_layers", "search_sparsities", "search_bits"):
    if not getattr(search, name):
      raise ValueError(f"--{name} is empty")
  if any(not 0 <= share < 1 for share in search.search_sparsities):
    raise ValueError(f"--search_sparsities={search.search_sparsities} must lie in [0, 1)")
  if set(search.search_bits) - {4, 8, 32}:
    raise ValueError(f"--search_bits={search.search_bits}: each must be 32, 8 or 4")
  return [
    Trial(dim, layers, share, bits)
    for dim in search.search_dims
    for layers in search.search_layers
    for share in search.search_sparsities
    for bits in search.search_bits
  ]


def plan(trials: Sequence[Trial], setup: Setup, path: pathlib.Path) -> dict[str, dict[str, float]]:
  """Bytes and median latency of every trial before any training, from untrained weights.

  Kept in a file: a search that goes on must not time again and decide otherwise.
  """
  planned = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
  new = [trial for trial in trials if trial.name not in planned]
  print(f"timing {len(new)} untrained models", flush=True)
  candidates = {}
  task = problems.make_task(setup.data, setup.student.model)
  for trial in new:
    params, sizes = _untrained(trial, setup, task)
    planned[trial.name] = {"bytes": float(store.predict_bytes(params))}
    serve = jax.jit(task.serve(families.make_model(setup.student.model, sizes).apply))
    candidates[_timed_as(trial)] = (serve, params, task.request(1))
  calls = {
    name: lambda serve=serve, params=params, request=request: serve(params, request)
    for name, (serve, params, request) in candidates.items()
  }
  times = cost.time_calls(calls, num_calls=setup.requests)
  for trial in new:
    planned[trial.name]["p50_ms"] = float(np.median(times[_timed_as(trial)])) * 1e3
  _write(path, planned)
  return {trial.name: planned[trial.name] for trial in trials}


def ruled_out(
  search: SearchConfig, planned: dict[str, dict[str, float]]
) -> Iterable[tuple[str, str]]:
  """Trials that need no training to be known too large or too slow, and why."""
  for name, known in planned.items():
    mb = known["bytes"] / 1e6
    if search.max_mb is not None and mb > SLACK * search.max_mb:
      yield name, f"about {mb:.3f} MB, more than --max_mb={search.max_mb:g}"
    elif search.max_p99_ms is not None and known["p50_ms"] > search.max_p99_ms:
      # Where the median is too slow, so is the slowest of a hundred.
      yield name, f"median {known['p50_ms']:.3f} ms, more than --max_p99_ms={search.max_p99_ms:g}"


def urgency(
  trial: Trial,
  search: SearchConfig,
  found: dict[str, dict[str, float]],
  planned: dict[str, dict[str, float]],
  steps: dict[str, int],
  folder: pathlib.Path,
) -> tuple:
  """The order of trials: what may still win, then the cheapest to train, then the smallest.

  A trial cannot win if a smaller model keeps to the limits already. It is unlikely to if it makes a
  model smaller that has lost too much before.
  """
  drop = search.max_quality_drop
  keeps = [x for x in found.values() if drop is None or x["drop"] <= drop]
  best = min((x["bytes"] for x in keeps), default=float("inf"))
  made_from = [found[name] for name in (trial.student, trial.recovered) if name in found]
  lost = drop is not None and any(x["drop"] > drop for x in made_from)
  size = planned[trial.name]["bytes"]
  return size >= best, lost, missing_steps(trial, steps, folder), size


def missing_steps(trial: Trial, steps: dict[str, int], folder: pathlib.Path) -> int:
  """Training steps of its jobs that are not finished."""
  needed = {trial.student: steps["distill"]}
  if trial.recovered != trial.student:
    needed[trial.recovered] = steps["prune"]
  done = {name for name in needed if (folder / "trials" / name / runs.RESULT_FILE).exists()}
  return sum(count for name, count in needed.items() if name not in done)


def train_trial(trial: Trial, setup: Setup, folder: pathlib.Path) -> None:
  """Distils, prunes and quantises, as far as another trial has not done so."""
  student = folder / trial.student
  distill.run(
    distill.Config((setup.teacher,), setup.data, _model_of(trial, setup), setup.distill, setup.fit),
    student,
  )
  recovered = folder / trial.recovered
  if recovered != student:
    fit = dataclasses.replace(setup.recovery, train_bits=4 if trial.bits == 4 else 0)
    masks = dataclasses.replace(setup.prune, sparsity=trial.sparsity)
    prune.run(prune.Config(str(student), setup.teacher, setup.distill, masks, fit), recovered)
  if trial.bits < 32:
    quantize.run(
      quantize.Config(str(recovered), bits=trial.bits, seed=setup.fit.seed), folder / trial.name
    )


def validated(model_dir: str | pathlib.Path, setup: Setup, path: pathlib.Path) -> float:
  """The metric of a finished model on the validation part: what a search may look at."""
  if not path.exists():
    saved = stored.load_teacher(model_dir, setup.data, setup.student.model, flag="--teacher_dir")
    task = problems.make_task(saved.data, saved.family)
    apply = families.make_model(saved.family, saved.sizes).apply
    means = fitting.means(task.judge(apply, saved.params, "valid"))
    _write(path, {"metric": task.metric, "value": means[task.metric]})
  return json.loads(path.read_text(encoding="utf-8"))["value"]


def judge(setup: Setup, names: Sequence[str], folder: pathlib.Path) -> dict[str, Any]:
  """Test metrics and cost of the teacher and all trials, measured in turns."""
  config = evaluate.Config(
    models=(setup.teacher, *(str(folder / "trials" / name) for name in names)),
    names=("teacher", *names),
    requests=setup.requests,
    batches=setup.batches,
    print_table=False,
  )
  try:
    return evaluate.run(config, folder / "evaluation")
  except stored.WorkdirError:  # Of a search with other trials: measured again, all side by side.
    shutil.rmtree(folder / "evaluation")
    return evaluate.run(config, folder / "evaluation")


def choose(search: SearchConfig, found: dict[str, dict[str, float]]) -> dict[str, Any]:
  """The frontier, the smallest model within all limits, and what is missed where there is none."""
  asked = {
    "max_mb": ("bytes", search.max_mb, 1e6),
    "max_p99_ms": ("p99_ms", search.max_p99_ms, 1.0),
    "max_quality_drop": ("drop", search.max_quality_drop, 1.0),
  }
  limits = {
    flag: (key, most, unit) for flag, (key, most, unit) in asked.items() if most is not None
  }

  def keeps(numbers: dict[str, float], but: str = "") -> bool:
    return all(
      numbers[key] <= most * unit for flag, (key, most, unit) in limits.items() if flag != but
    )

  within = [name for name, numbers in found.items() if keeps(numbers)]
  missed = []
  if not within:
    for flag, (key, most, unit) in limits.items():
      others = {numbers[key] / unit: n for n, numbers in found.items() if keeps(numbers, but=flag)}
      if others:
        least = min(others)
        missed.append(
          f"--{flag}={most:g}: within the other limits the least is {least:.4g} ({others[least]}), "
          f"{least - most:.4g} too much"
        )
    if not missed:
      missed.append("no trial keeps to all limits but one" if found else "no trial was trained")
  return {
    "frontier": [name for name in found if not _dominated(found[name], found.values())],
    "chosen": min(within, key=lambda name: found[name]["bytes"]) if within else None,
    "missed": missed,
  }


def describe(result: dict[str, Any]) -> str:
  """The table of the frontier and the verdict, as text."""
  shown = [r for r in result["rows"] if r["name"] in (*result["frontier"], "teacher")]
  lines = [report.to_markdown(report.summarise(shown)), ""]
  lines += [f"not tried: {name}: {why}" for name, why in result["left"].items()]
  if result["chosen"]:
    row = next(r["search"] for r in result["rows"] if r["name"] == result["chosen"])
    lines.append(
      f"smallest within the limits: {result['chosen']}, {row['bytes'] / 1e6:.3f} MB, p99 "
      f"{row['p99_ms']:.3f} ms, {row['drop']:.1%} of the validation metric lost; copied to best/"
    )
  else:
    lines += ["no trial keeps to all limits", *result["missed"]]
  return "\n".join(lines)


def _dominated(numbers: dict[str, float], others: Iterable[dict[str, float]]) -> bool:
  """Whether another model is nowhere worse, in bytes, latency and quality, and somewhere better."""
  keys = ("bytes", "p99_ms", "drop")
  return any(
    all(x[key] <= numbers[key] for key in keys) and any(x[key] < numbers[key] for key in keys)
    for x in others
  )


def _model_of(trial: Trial, setup: Setup) -> ModelConfig:
  return dataclasses.replace(setup.student, dim=trial.dim, layers=trial.layers)


def _timed_as(trial: Trial) -> str:
  """Trials with one of these take the same time: masks cost none and save none."""
  shrunk = trial.recovered != trial.student
  return f"{trial.student}-{trial.bits}" + ("-shrunk" if shrunk else "")


def _untrained(trial: Trial, setup: Setup, task: Task) -> tuple[Params, Sizes]:
  """Fresh params, shrunk, masked and rounded as the trained ones would be."""
  family, sizes = setup.student.model, families.model_sizes(_model_of(trial, setup), task)
  rows = {name: jnp.asarray(values[:1]) for name, values in task.arrays.items()}
  augment, key = task.augment(setup.fit), jax.random.key(0)
  batch = rows if augment is None else augment(rows, key)
  params = families.make_model(family, sizes).init(key, batch)
  if trial.recovered != trial.student:
    source = stored.SavedModel(pathlib.Path(), family, sizes, params, setup.data)
    params, sizes = prune.shrink(source, setup.prune)
    select = prune.selected(setup.prune)
    scores = pruning.magnitude(params)
    masks = pruning.make_masks(scores, sparsity=trial.sparsity, select=select)
    params = pruning.apply_masks(params, masks)
  if trial.bits < 32:
    params = quant.quantize_params(
      params, select=families.serves_integers, bits=trial.bits, rest_dtype="float16"
    )
  return params, sizes


def _steps_taken(folder: pathlib.Path) -> int:
  """Of a finished training; quantising takes none."""
  return ((runs.finished(folder) or {}).get("training") or {}).get("steps", 0)


def _leave_best(name: str | None, folder: pathlib.Path) -> None:
  best = folder / "best"
  shutil.rmtree(best, ignore_errors=True)
  if name is not None:
    best.mkdir()
    for file in (stored.MODEL_FILE, runs.RESULT_FILE):
      shutil.copy(folder / "trials" / name / file, best / file)


def _write(path: pathlib.Path, values: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
