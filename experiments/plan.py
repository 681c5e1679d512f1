"""What a distillation needs on many devices, before any is rented: memory, traffic, bottleneck.

python -m experiments.plan --items=1e9 --dim=128 --devices=256

Public peak figures and the formulas of docs/scaling.md, of Adam in float32 over a whole catalogue:
a plan, not a promise. Nothing is compiled, and no device is needed.
"""

import dataclasses
import pathlib
from typing import Any

from matplotlib.figure import Figure

from experiments import cli, runs
from kdjax import report, scaling
from kdjax.flags import option
from kdjax.report.plots import COLOURS
from kdjax.report.table import Column, three_digits


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.plan."""

  items: float = option(1e6, "Items of the catalogue, such as 1e9.", lower=1)
  dim: int = option(64, "Width of the student's item table.", lower=1)
  layers: int = option(2, "Blocks of the student.", lower=0)
  mlp_dim: int | None = option(None, "Hidden units of its blocks; 4 x dim when not given.")
  length: int = option(64, "Positions of a row.", lower=1)
  batch_size: int = option(4096, "Packed rows of a step, of all devices together.", lower=1)
  teacher_dim: int = option(0, "Width of a live teacher's item table; 0 for none.", lower=0)
  teacher_layers: int = option(2, "Blocks of the teacher.", lower=0)
  cached_top_k: int = option(
    0, "Targets of a cached teacher at every position (experiments.cache_teacher).", lower=0
  )
  devices: int = option(8, "How many devices.", lower=1)
  data_devices: int | None = option(
    None, "Axis data of the mesh; with the two below, instead of the best mesh of all.", lower=1
  )
  fsdp_devices: int | None = option(None, "Axis fsdp: parameters and their state are split.")
  model_devices: int | None = option(None, "Axis model: tables, heads, hidden units are split.")
  bfloat16: bool = option(False, "Products take bfloat16 (--dtype=bfloat16); float32 otherwise.")


def _of(key: str, scale: float = 1.0) -> Any:
  return lambda row: three_digits(row[key] * scale)


COLUMNS = (
  Column("device", lambda row: row["device"]),
  Column("data x fsdp x model", lambda row: " x ".join(map(str, row["split"]))),
  Column("GB of its memory", lambda row: f"{row['memory'] / 1e9:.1f} of {row['has'] / 1e9:.0f}"),
  Column("fits", lambda row: "yes" if row["fits"] else f"from {row['needed']} devices"),
  Column("MB sent a step", _of("sent", 1e-6)),
  Column("compute, ms", _of("compute", 1e3)),
  Column("memory, ms", _of("memory_seconds", 1e3)),
  Column("network, ms", _of("network", 1e3)),
  Column("waits for", lambda row: row["bottleneck"]),
  Column("rows/s", _of("rows_per_second")),
)


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Prints the table, and writes it, result.json and plots/memory.png."""
  job = make_job(config)
  rows: list[dict[str, Any]] = []
  parts: dict[str, dict[str, float]] = {}
  for hardware in scaling.HARDWARE:
    found, needed = _estimate(config, job, hardware)
    seconds = found.seconds
    rows.append(
      {
        "device": hardware.name,
        "split": list(found.split),
        "memory": found.memory,
        "has": hardware.memory,
        "fits": found.memory <= hardware.memory,
        "needed": needed,
        "sent": found.sent,
        "compute": seconds["compute"],
        "memory_seconds": seconds["memory"],
        "network": seconds["network"],
        "bottleneck": found.bottleneck,
        "rows_per_second": config.batch_size / sum(seconds.values()),
      }
    )
    parts[hardware.name] = scaling.memory(job, found.split)
  folder = pathlib.Path(workdir)
  text = report.to_markdown(rows, columns=COLUMNS)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "table.md").write_text(text + "\n", encoding="utf-8")
  result = {"job": "plan", "config": dataclasses.asdict(config), "rows": rows, "parts": parts}
  runs.write_result(folder, result)
  plot_memory(parts, {row["device"]: row["has"] for row in rows}, folder / "plots" / "memory.png")
  print(text)
  return result


def make_job(config: Config) -> scaling.Job:
  """The sizes that the flags give."""
  items = round(config.items)

  def sizes(dim: int, layers: int, mlp_dim: int | None) -> scaling.Sizes:
    return scaling.Sizes(items, dim, layers, mlp_dim or 4 * dim, config.length)

  teacher = None
  if config.teacher_dim:
    if config.cached_top_k:
      raise ValueError("give --teacher_dim (a live teacher) or --cached_top_k, not both")
    teacher = sizes(config.teacher_dim, config.teacher_layers, None)
  student = sizes(config.dim, config.layers, config.mlp_dim)
  return scaling.Job(student, config.batch_size, teacher, config.cached_top_k)


def _estimate(
  config: Config, job: scaling.Job, hardware: scaling.Hardware
) -> tuple[scaling.Estimate, int | None]:
  """The mesh that the flags give, or the quickest that fits; else how many devices would do."""
  axes = (config.data_devices, config.fsdp_devices, config.model_devices)
  if any(axes):
    split = scaling.Split(*(axis or 1 for axis in axes))
    if split.devices != config.devices:
      raise ValueError(
        f"--data_devices x --fsdp_devices x --model_devices is {split.devices}, "
        f"not --devices={config.devices}"
      )
    if config.batch_size % (split.data * split.fsdp):
      raise ValueError(
        f"--batch_size={config.batch_size} does not divide over {split.data * split.fsdp} devices"
      )
    return scaling.estimate(job, split, hardware, bfloat16=config.bfloat16), None
  found = scaling.best_split(job, config.devices, hardware, bfloat16=config.bfloat16)
  if found is not None:
    return found, None
  devices = config.devices
  while devices < 2**24:
    devices *= 2
    if scaling.best_split(job, devices, hardware, bfloat16=config.bfloat16):
      break
  least = min(
    (s for s in scaling.splits(config.devices) if config.batch_size % (s.data * s.fsdp) == 0),
    key=lambda s: sum(scaling.memory(job, s).values()),
    default=scaling.Split(model=config.devices),
  )
  return scaling.estimate(job, least, hardware, bfloat16=config.bfloat16), devices


def plot_memory(
  parts: dict[str, dict[str, float]], has: dict[str, float], path: pathlib.Path
) -> None:
  """Bars of what fills each device, and a line where its memory ends."""
  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.add_subplot()
  names = list(parts)
  left = [0.0] * len(names)
  for number, part in enumerate(next(iter(parts.values()))):
    sizes = [parts[name][part] / 1e9 for name in names]
    colour = COLOURS[number % len(COLOURS)]
    hatch = "//" if number >= len(COLOURS) else None
    axes.barh(names, sizes, left=left, label=part, color=colour, hatch=hatch, height=0.6)
    left = [a + b for a, b in zip(left, sizes, strict=True)]
  for number, name in enumerate(names):
    end = has[name] / 1e9
    axes.plot([end, end], [number - 0.4, number + 0.4], color="black", linewidth=2)
  axes.set_xlabel("GB on each device; the black line is all it has")
  axes.invert_yaxis()
  axes.legend(fontsize="small", ncols=2)
  axes.spines[["top", "right"]].set_visible(False)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120)


if __name__ == "__main__":
  cli.main(Config, run, "runs/plan")
