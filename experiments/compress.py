"""The main job: from an interaction log to a small int8 model that ranks as well as a large one.

Trains a teacher; the same student alone and from the teacher; prunes the distilled student with
recovery by distillation; quantizes it to int8; judges and times all of them side by side, and
writes the table and the plots.

python -m experiments.compress --workdir=runs/demo
python -m experiments.compress --workdir=runs/mine --dataset=path/to/log

With a limit it searches for the smallest model that keeps to it, over widths, depths, sparsities
and bits, and draws the frontier:

python -m experiments.compress --max_mb=2 --max_p99_ms=1 --max_quality_drop=0.02
"""

import dataclasses
import pathlib
from typing import Any

from experiments import cli, distill, evaluate, prune, quantize, runs, search, stored, train
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig, PruneConfig
from kdjax import report
from kdjax.flags import group, option
from kdjax.train.writers import read_jsonl


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.compress; those of the teacher begin with `teacher_` and so on."""

  teacher_dir: str = option(
    "", "Workdir of a trained teacher, or a Hugging Face folder; trained here when not given."
  )
  seeds: tuple[int, ...] = option((0,), "Seeds of the students; each trains a student of its own.")
  requests: int = option(200, "Timed single requests of each model.", lower=1)
  batches: int = option(20, "Timed batches of 256 requests of each model.", lower=1)
  alone_dropout: float | None = option(
    None,
    "Dropout of the student that trains alone, where it needs another than --student_dropout: it "
    "overfits sooner than one with a teacher.",
    lower=0,
    upper=1,
  )
  data: DataConfig = group(DataConfig)
  teacher: ModelConfig = group(ModelConfig, prefix="teacher_", dim=128, layers=2, heads=2)
  teacher_fit: FitConfig = group(FitConfig, prefix="teacher_")
  student: ModelConfig = group(ModelConfig, prefix="student_", dim=32, layers=1)
  student_fit: FitConfig = group(FitConfig, prefix="student_")
  distill: DistillConfig = group(DistillConfig)
  prune: PruneConfig = group(PruneConfig)
  recovery_fit: FitConfig = group(FitConfig, prefix="recovery_", epochs=20)
  limits: search.SearchConfig = group(search.SearchConfig)


STAGES = ("alone", "distilled", "pruned", "int8")
LABELS = {
  "teacher": "teacher",
  "alone": "alone",
  "distilled": "distilled",
  "pruned": "+ pruned",
  "int8": "+ int8",
}


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Runs every stage that the workdir does not hold yet, then the comparison.

  Returns:
    The `result.json`: a row for the teacher and, for every stage, one over all seeds; with a limit
    that of `experiments.search.run`.
  """
  folder = runs.open_workdir(workdir, config)
  done = runs.finished(folder)
  if done is not None and (done["job"] == "search") != config.limits.asked():
    raise stored.WorkdirError(
      f"{folder} holds a {'search' if done['job'] == 'search' else 'run without limits'}; give "
      "another --workdir"
    )
  if config.limits.asked():
    return _search(config, folder)
  if done is None:
    done = _run_stages(config, folder)
  print(report.to_markdown(report.summarise(done["rows"])))
  print(f"table, plots and models: {folder}")
  return done


def _search(config: Config, folder: pathlib.Path) -> dict[str, Any]:
  """Limits and budget may change from call to call: what is trained stays."""
  seed = config.seeds[0]
  setup = search.Setup(
    str(_teacher(config, folder)),
    config.data,
    config.student,
    dataclasses.replace(config.student_fit, seed=seed),
    config.distill,
    config.prune,
    dataclasses.replace(config.recovery_fit, seed=seed),
    config.requests,
    config.batches,
  )
  result = search.run(config.limits, setup, folder)
  result |= {"dataset": pathlib.PurePath(config.data.dataset).name, "seeds": [seed]}
  result["config"] = dataclasses.asdict(config)
  shown = [row for row in result["rows"] if row["name"] in (*result["frontier"], "teacher")]
  draw(shown, {"teacher": pathlib.Path(setup.teacher)}, folder)
  runs.write_result(folder, result)
  print(search.describe(result))
  print(f"table, plots and models: {folder}")
  return result


def _teacher(config: Config, folder: pathlib.Path) -> pathlib.Path:
  """The workdir of the teacher, trained here when none was given."""
  if config.teacher_dir:
    return pathlib.Path(config.teacher_dir)
  train.run(train.Config(config.data, config.teacher, config.teacher_fit), folder / "teacher")
  return folder / "teacher"


def _run_stages(config: Config, folder: pathlib.Path) -> dict[str, Any]:
  teacher_dir = _teacher(config, folder)
  teacher = str(teacher_dir)
  stages: dict[str, list[pathlib.Path]] = {stage: [] for stage in STAGES}
  alone = config.student
  if config.alone_dropout is not None:
    alone = dataclasses.replace(alone, dropout=config.alone_dropout)
  for seed in config.seeds:
    paths = {stage: folder / f"{stage}-seed{seed}" for stage in STAGES}
    fit = dataclasses.replace(config.student_fit, seed=seed)
    recovery = dataclasses.replace(config.recovery_fit, seed=seed)
    train.run(train.Config(config.data, alone, fit), paths["alone"])
    distill.run(
      distill.Config((teacher,), config.data, config.student, config.distill, fit),
      paths["distilled"],
    )
    prune.run(
      prune.Config(str(paths["distilled"]), teacher, config.distill, config.prune, recovery),
      paths["pruned"],
    )
    quantize.run(quantize.Config(str(paths["pruned"]), seed=seed), paths["int8"])
    for stage, path in paths.items():
      stages[stage].append(path)
  folders = {"teacher": [teacher_dir], **stages}
  judged = evaluate.run(
    evaluate.Config(
      models=tuple(str(path) for paths in folders.values() for path in paths),
      names=tuple(LABELS[stage] for stage, paths in folders.items() for _ in paths),
      requests=config.requests,
      batches=config.batches,
      print_table=False,
    ),
    folder / "evaluation",
  )
  result = {
    "job": "compress",
    "metric": judged["metric"],
    "dataset": pathlib.PurePath(config.data.dataset).name,
    "seeds": list(config.seeds),
    "config": dataclasses.asdict(config),
    "rows": judged["rows"],
  }
  draw(result["rows"], {LABELS[stage]: paths[0] for stage, paths in folders.items()}, folder)
  runs.write_result(folder, result)
  return result


def draw(
  rows: list[dict[str, Any]], folders: dict[str, pathlib.Path], folder: pathlib.Path
) -> None:
  """Writes the table as Markdown and CSV, and the plots."""
  table = report.summarise(rows)
  (folder / "table.md").write_text(report.to_markdown(table) + "\n", encoding="utf-8")
  (folder / "table.csv").write_text(report.to_csv(table), encoding="utf-8")
  plots = folder / "plots"
  plots.mkdir(exist_ok=True)
  report.plot_quality_against_bytes(table, plots / "quality_bytes.png")
  report.plot_quality_against_latency(table, plots / "quality_latency.png")
  curves = {name: read_jsonl(path / "metrics.jsonl") for name, path in folders.items()}
  training = {
    name: (runs.finished(path) or {}).get("training", {}) for name, path in folders.items()
  }
  report.plot_training_curves(
    {name: lines for name, lines in curves.items() if lines},
    plots / "training.png",
    metric=f"valid/{rows[0]['metric']}",
    best_steps={name: said["best_step"] for name, said in training.items() if "best_step" in said},
  )


if __name__ == "__main__":
  cli.main(Config, run, "runs/compress")
