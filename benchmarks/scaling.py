"""What devices tell each other, and keep, in a distillation step: compiled programs and formulas.

  python -m benchmarks.scaling             # virtual devices of this machine's CPU
  python -m benchmarks.scaling --chip=v5e  # TPUs that are not here, by their compiler (libtpu)

The step that `experiments.distill` runs (KL over the whole catalogue from a live SASRec, Adam) is
compiled for 1, 2, 4 and 8 virtual devices along every axis of the mesh. Bytes are those of the
collectives in the compiled program, memory is XLA's own analysis; both are compared with
`kdjax.scaling`. Nothing is timed, for nothing runs.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any
from unittest import mock

os.environ["XLA_FLAGS"] = " ".join(
  ("--xla_force_host_platform_device_count=8", os.environ.get("XLA_FLAGS", ""))
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import studies
from kdjax import losses, models, report, scaling
from kdjax.collectives import read_collectives
from kdjax.data import batches
from kdjax.train import objective, placement, state, step

STUDENT = scaling.Sizes(items=262_144, dim=32, layers=2, mlp_dim=128, length=32)
TEACHER = STUDENT._replace(dim=64, mlp_dim=256)
ROWS = 64
AXES = ("data", "fsdp", "model")
MIXED = (scaling.Split(2, 2, 2), scaling.Split(2, 1, 4), scaling.Split(4, 1, 2))


def compile_step(
  job: scaling.Job, split: scaling.Split, devices: Sequence[Any] | None = None
) -> Any:
  """The compiled step of one mesh, of this machine's devices where no others are given."""
  mesh = placement.make_mesh(**split._asdict(), devices=devices)

  def make(sizes: scaling.Sizes) -> Any:
    return models.make_sasrec(
      num_items=sizes.items, max_length=sizes.length, dim=sizes.dim, num_layers=sizes.layers,
      mlp_dim=sizes.mlp_dim, num_heads=8, dropout=0.0,
    )  # fmt: skip

  def loss(student, teacher, batch):
    where = batch["labels"] >= 0
    return losses.catalog_kl_loss(student.logits, teacher.logits, where=where)

  student, teacher = make(job.student), make(job.teacher or job.student)
  goal = objective.make_objective(
    placement.on_mesh(student.apply, mesh),
    [objective.Term("kl", loss)],
    teacher_apply=placement.on_mesh(teacher.apply, mesh),
  )
  tx = optax.adam(1e-3)
  shape = (job.rows, job.student.length)
  batch = batches.complete(np.zeros(shape, np.int32))

  def init(key):
    given = {name: jnp.asarray(values) for name, values in batch.items()}
    params = teacher.init(key, given)
    return state.init_state(goal.init(key, student.init(key, given), params, given), tx), params

  shapes = jax.eval_shape(init, jax.random.key(0))
  places = placement.shardings(shapes, mesh)
  put = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)  # noqa: E731
  train_state, teacher_params = jax.tree.map(put, shapes, places)
  rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  given = {name: jax.ShapeDtypeStruct(shape, np.int32, sharding=rows) for name in batch}
  train = jax.jit(step.make_train_step(goal, tx), donate_argnums=0, out_shardings=(places[0], None))
  return train.lower(train_state, teacher_params, given, jax.random.key(0)).compile()


def measure(
  job: scaling.Job, split: scaling.Split, devices: Sequence[Any] | None = None
) -> dict[str, Any]:
  """A row: the program's collectives and memory beside the formulas'."""
  compiled = compile_step(job, split, devices)
  found = read_collectives(compiled.as_text())
  memory = compiled.memory_analysis()
  kept = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
  kinds: dict[str, float] = {}
  for one in found:
    kinds[one.kind] = kinds.get(one.kind, 0.0) + one.sent
  return {
    "split": split._asdict(),
    "sent": sum(one.sent for one in found),
    "sent_formula": sum(transfer.sent(split) for transfer in scaling.transfers(job, split)),
    "kinds": kinds,
    "memory": kept - memory.alias_size_in_bytes,
    "memory_formula": sum(scaling.memory(job, split, host=devices is None).values()),
  }


def to_table(rows: list[dict[str, Any]]) -> str:
  """Markdown."""
  lines = [
    "| data x fsdp x model | MB sent | formula | ratio | MB kept | formula | ratio |",
    "|---|---:|---:|---:|---:|---:|---:|",
  ]
  for row in rows:
    cells = [" x ".join(str(row["split"][axis]) for axis in AXES)]
    for name in ("sent", "memory"):
      value, formula = row[name] / 1e6, row[f"{name}_formula"] / 1e6
      ratio = f"{value / formula:.2f}" if formula else "–"  # noqa: RUF001
      cells += [f"{value:.2f}", f"{formula:.2f}", ratio]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def hardware_table() -> str:
  """What `kdjax.scaling` knows of devices, as Markdown."""
  lines = [
    "| device | GB | GB/s | bf16 TFLOP/s | float32 | links, GB/s | of a group of | beyond, GB/s |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
  ]
  for one in scaling.HARDWARE:
    cells = [one.name, *(f"{x / 1e9:,.4g}" for x in (one.memory, one.bandwidth))]
    cells += [f"{one.flops / 1e12:,.4g}", f"x {one.float32:g}", f"{one.link / 1e9:,.4g}"]
    lines.append("| " + " | ".join([*cells, str(one.group), f"{one.far / 1e9:,.4g}"]) + " |")
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  """Writes results/scaling.json and .md, or those of a chip."""
  del argv
  chip = flags.FLAGS.chip
  name = f"scaling_{chip}" if chip else "scaling"
  devices = topologies.get_topology_desc(f"{chip}:2x4", platform="tpu").devices if chip else None
  job = scaling.Job(STUDENT, ROWS, TEACHER)
  meshes = [scaling.Split()]
  meshes += [scaling.Split(**{axis: n}) for axis in AXES for n in (2, 4, 8)]
  # The library asks where it runs to choose blocks, and nothing runs where this compiles for.
  with mock.patch.object(jax, "default_backend", return_value="tpu" if chip else "cpu"):
    rows = [measure(job, split, devices) for split in (*meshes, *MIXED)]
  out = studies.RESULTS / name
  made = {"jax": jax.__version__, "job": [STUDENT, TEACHER, ROWS], "rows": rows}
  out.with_suffix(".json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
  table = to_table(rows)
  out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
  docs = pathlib.Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
  report.update_file(docs, {"hardware": hardware_table(), name: table})
  print(table)


if __name__ == "__main__":
  flags.DEFINE_enum("chip", "", ["", "v5e"], "Compile for TPUs of this kind, eight of them.")
  app.run(main)
