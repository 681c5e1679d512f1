"""What a distillation step needs on many devices: memory, bytes moved, and what it waits for.

Formulas, no measurement: `docs/scaling.md` derives them and says how far they are from what XLA
compiles. A sequence model stands for all: its item table is what grows.
"""

import itertools
import math
from typing import NamedTuple

_FLOAT = 4  # Bytes: parameters, optimizer state and gradients are float32.
# Logits in a block; kept on a CPU, of tables how wide: see `kdjax.losses.blocks`.
_BLOCK, _KEPT, _KEPT_WIDTH = 2**20, 2**24, 48
_DEVICE_BLOCK, _DEVICE_WIDE_BLOCK, _DEVICE_WIDTH = 2**24, 2**27, 1024


class Sizes(NamedTuple):
  """A sequence model with an item table, such as a SASRec.

  Attributes:
    items: V.
    dim: D, of the table and of the residual stream.
    layers: blocks; 0 for none.
    mlp_dim: hidden units of a block.
    length: T, positions of a row.
  """

  items: int
  dim: int
  layers: int
  mlp_dim: int
  length: int

  @property
  def table(self) -> int:
    """Numbers of the item table."""
    return self.items * self.dim

  @property
  def body(self) -> int:
    """Numbers of all else."""
    block = 4 * self.dim * (self.dim + 1) + 2 * self.dim * self.mlp_dim
    block += self.mlp_dim + self.dim + 4 * self.dim
    return self.length * self.dim + self.layers * block + 2 * self.dim


class Split(NamedTuple):
  """Devices along the axes of the mesh: see `kdjax.train.make_mesh`."""

  data: int = 1
  fsdp: int = 1
  model: int = 1

  @property
  def devices(self) -> int:
    """Of the mesh."""
    return self.data * self.fsdp * self.model


class Job(NamedTuple):
  """A distillation over a whole catalogue.

  Attributes:
    student: what is trained.
    rows: B, packed rows of a step, of all devices together.
    teacher: what runs beside it, or None: labels alone, or a teacher that was cached.
    cached: targets of a cached teacher at every position; 0 for none.
  """

  student: Sizes
  rows: int
  teacher: Sizes | None = None
  cached: int = 0


class Hardware(NamedTuple):
  """One device, by its maker's public figures.

  Attributes:
    name: of the device.
    memory: bytes.
    bandwidth: of that memory, bytes a second.
    flops: of dense bfloat16 products, a second; float32 ones run as `float32` of it by default.
    float32: the share of `flops` that JAX's default float32 products reach.
    link: bytes a second that a device sends to others of its group.
    group: devices joined by those links.
    far: bytes a second that a device sends beyond its group.
  """

  name: str
  memory: float
  bandwidth: float
  flops: float
  float32: float
  link: float
  group: int
  far: float


# Links are given for both directions together; a device sends half of that.
HARDWARE = (
  Hardware("TPU v5e", 16e9, 819e9, 197e12, 1.0, 200e9, 256, 25e9 / 8),
  Hardware("TPU v6e", 32e9, 1640e9, 918e12, 1.0, 400e9, 256, 100e9 / 8),
  Hardware("H100 SXM", 80e9, 3.35e12, 989e12, 0.5, 450e9, 8, 50e9),
  Hardware("H200 SXM", 141e9, 4.8e12, 989e12, 0.5, 450e9, 8, 50e9),
)


class Transfer(NamedTuple):
  """A kind of collective and how many bytes a device gives to it each step.

  Attributes:
    name: what travels.
    kind: "all-reduce", "all-gather" or "reduce-scatter".
    axes: of the mesh, over which.
    payload: bytes: the result of an all-gather, the operand of the others.
  """

  name: str
  kind: str
  axes: tuple[str, ...]
  payload: float

  def sent(self, split: Split) -> float:
    r"""Bytes that a device sends, around a ring: $(n - 1) / n$ of the payload, twice to reduce."""
    n = math.prod(getattr(split, axis) for axis in self.axes)
    return self.payload * (n - 1) / n * (2 if self.kind == "all-reduce" else 1)


def memory(job: Job, split: Split, *, host: bool = False) -> dict[str, float]:
  r"""Bytes on each device, by what they hold.

  With $P$ numbers, of which a device keeps $P / (f m)$, Adam keeps three times that, and float32
  gradients are $P / m$ until they are reduced over $f$. A device's $t = B T / (d f)$ tokens keep
  $\approx 16 D + 3 F$ numbers a block for the way back, and the attention weights.

  Args:
    job: sizes.
    split: of the mesh; the teacher is split alike.
    host: whether the devices are those of a CPU, whose catalogue losses use other blocks.

  Returns:
    Bytes by name: `parameters`, `optimizer`, `gradients`, `gathered`, `teacher`, `activations`,
    `loss`, `batch`.
  """
  student, teacher = job.student, job.teacher
  d, f, m = split
  tokens = job.rows * student.length / (d * f)
  whole = (student.table + student.body) / m
  kept = whole / f
  block = tokens * (16 * student.dim + 3 * student.mlp_dim / m + 3 * student.length)
  widths = student.dim + (teacher.dim if teacher else 0)
  other = 0.0
  if teacher:
    other = (teacher.table + teacher.body) / (f * m)
    other += (teacher.table / m if f > 1 else 0) + tokens * (6 * teacher.dim + teacher.mlp_dim / m)
  return {
    "parameters": _FLOAT * kept,
    "optimizer": _FLOAT * 2 * kept,
    # XLA for CPU sums gradients over `fsdp` whole, into another array.
    "gradients": _FLOAT * whole * (2 if host and f > 1 else 1),
    "gathered": _FLOAT * whole if f > 1 else 0.0,
    "teacher": _FLOAT * other,
    "activations": _FLOAT * (student.layers * block + 4 * tokens * student.dim),
    "loss": _FLOAT * (3 * tokens * widths + _logits(job, split, host)),
    "batch": _FLOAT * tokens * (4 + 2 * job.cached),
  }


def _logits(job: Job, split: Split, host: bool) -> float:
  """Numbers of the blocks of logits that are there at once: of student, teacher and gradient."""
  tokens = job.rows * job.student.length / (split.data * split.fsdp)
  items = job.student.items / split.model
  models = 2 if job.teacher else 1
  if not host:
    width = max(job.student.dim, job.teacher.dim if job.teacher else 0)
    whole = width >= _DEVICE_WIDTH and items <= _DEVICE_WIDE_BLOCK / 1024
    return models * min(tokens * items, _DEVICE_WIDE_BLOCK if whole else _DEVICE_BLOCK)
  kept = min(128, tokens // 8, _KEPT // items) // 8 * 8
  tables = (job.student, job.teacher) if job.teacher else (job.student,)
  wide = sum(table.dim >= _KEPT_WIDTH for table in tables)
  if wide and items > 16384 and kept >= 64:
    return max(wide * kept * items, 3 * models * _BLOCK // 2)
  return 3 * models * min(tokens * items, _BLOCK)


def transfers(job: Job, split: Split) -> list[Transfer]:
  r"""What the devices tell each other in a step.

  - `model`: the embeddings of a device's $t$ tokens ($t D$, summed over who has the rows), what
    comes out of attention and feed-forward layers (two of $t D$ a block forward, four back: those
    of queries, keys and values apart), the gradient of the queries ($t D$), log-normalisers. Of a
    live teacher: the embeddings and two of $t D_t$ a block. Heads that `model` divides.
  - `fsdp`: parameters are gathered ($P / m$) before they are used, their gradients scattered.
  - `data`: gradients are summed, $P / (f m)$. What tokens add to rows that were looked up is told
    to all who share the batch, before that: $t d f (D + 2)$.

  No table and no logits travel over `model`.
  """
  student, teacher = job.student, job.teacher
  d, f, m = split
  tokens = job.rows * student.length / (d * f)
  whole = _FLOAT * (student.table + student.body) / m
  found = []

  def add(name: str, kind: str, axes: tuple[str, ...], payload: float) -> None:
    if math.prod(getattr(split, axis) for axis in axes) > 1 and payload:
      found.append(Transfer(name, kind, axes, payload))

  stream = _FLOAT * tokens * student.dim
  add("embeddings", "all-reduce", ("model",), stream)
  add("blocks", "all-reduce", ("model",), 6 * student.layers * stream)
  add("queries' gradient", "all-reduce", ("model",), stream)
  add("log-normalisers", "all-reduce", ("model",), _FLOAT * tokens * (5 if teacher else 3))
  add("parameters", "all-gather", ("fsdp",), whole)
  add("gradients over fsdp", "reduce-scatter", ("fsdp",), whole)
  add("gradients over data", "all-reduce", ("data",), whole / f)
  add("looked up", "all-gather", ("data", "fsdp"), (stream + 2 * _FLOAT * tokens) * d * f)
  if teacher:
    wide = _FLOAT * tokens * teacher.dim
    add("teacher's blocks", "all-reduce", ("model",), (2 * teacher.layers + 1) * wide)
    whole = _FLOAT * (teacher.table + teacher.body) / m
    add("teacher's parameters", "all-gather", ("fsdp",), whole)
  return found


def flops(job: Job, split: Split) -> float:
  r"""Floating-point operations of a device in a step.

  $6 P_{body}$ a token forward and back ($2 P_{body}$ of a teacher) and attention, and over the
  catalogue $2 V (4 D + 2 D_t)$: large catalogues compute logits twice, once for the
  log-normaliser, and the student's gradients of queries and table take a product each.
  """
  student, teacher = job.student, job.teacher
  total = 6 * student.body + 12 * student.layers * student.length * student.dim
  total += 2 * student.items * 4 * student.dim
  if teacher:
    total += 2 * teacher.body + 4 * teacher.layers * teacher.length * teacher.dim
    total += 2 * teacher.items * 2 * teacher.dim
  return total * job.rows * student.length / split.devices


def traffic(job: Job, split: Split) -> float:
  """Bytes that a device reads from and writes to its own memory in a step, at the least.

  Adam reads and writes a parameter and two moments and reads a gradient that was written (32 bytes
  a number). Every block of 1,024 tokens reads the tables twice, and the student's gradient is read
  and written once more.
  """
  student, teacher = job.student, job.teacher
  d, f, m = split
  kept = (student.table + student.body) / (f * m)
  blocks = max(1.0, job.rows * student.length / (d * f) / 1024)
  tables = 4 * student.table + (2 * teacher.table if teacher else 0)
  return 32 * kept + _FLOAT * blocks * tables / m


class Estimate(NamedTuple):
  """What a step of a job takes on some hardware.

  Attributes:
    split: of the mesh.
    memory: bytes on each device.
    sent: bytes that a device sends in a step.
    seconds: of a step by what it waits for: `compute`, `memory`, `network`. They overlap at best
      and add up at worst.
  """

  split: Split
  memory: float
  sent: float
  seconds: dict[str, float]

  @property
  def bottleneck(self) -> str:
    """What takes longest."""
    return max(self.seconds, key=lambda name: self.seconds[name])


def estimate(job: Job, split: Split, hardware: Hardware, *, bfloat16: bool = False) -> Estimate:
  """The cost of a step where the three are at their public peaks.

  Args:
    job: sizes.
    split: of the mesh.
    hardware: of every device.
    bfloat16: whether products take bfloat16; float32 ones run at the device's default precision.
  """
  found = transfers(job, split)
  rate = hardware.flops * (1.0 if bfloat16 else hardware.float32)
  return Estimate(
    split,
    sum(memory(job, split).values()),
    sum(t.sent(split) for t in found),
    {
      "compute": flops(job, split) / rate,
      "memory": traffic(job, split) / hardware.bandwidth,
      "network": sum(_seconds(t, split, hardware) for t in found),
    },
  )


def _seconds(transfer: Transfer, split: Split, hardware: Hardware) -> float:
  """Of a collective: within groups over their links, and a group's share of it between groups."""
  stride, near, far = 1, 1, 1
  for axis in ("model", "fsdp", "data"):  # The innermost axis of a mesh first.
    size = getattr(split, axis)
    if axis in transfer.axes:
      inside = min(size, max(1, hardware.group // stride))
      near, far = near * inside, far * -(-size // inside)
    stride *= size
  times = 2 if transfer.kind == "all-reduce" else 1
  seconds = transfer.payload * (near - 1) / near / hardware.link
  seconds += transfer.payload / near * (far - 1) / far / hardware.far
  return times * seconds


def splits(devices: int) -> list[Split]:
  """Every mesh of so many devices, whose axes are powers of 2 (or take all that is left).

  Raises:
    ValueError: if there is no device.

  Example:
    >>> len(splits(4)), splits(1)
    (6, [Split(data=1, fsdp=1, model=1)])
  """
  if devices < 1:
    raise ValueError(f"there must be at least one device, got {devices}")
  powers = [2**n for n in range(devices.bit_length())]
  return [
    Split(devices // (fsdp * model), fsdp, model)
    for fsdp, model in itertools.product(powers, powers)
    if devices % (fsdp * model) == 0
  ]


def best_split(
  job: Job, devices: int, hardware: Hardware, *, bfloat16: bool = False
) -> Estimate | None:
  """The mesh whose step is quickest, of those that fit in 90 % of the memory; None where none does.

  Seconds of compute, memory and network are added, and of equals the mesh with the fewest axes is
  taken. The batch must divide over `data` and `fsdp`.
  """
  fits = [
    found
    for split in splits(devices)
    if job.rows % (split.data * split.fsdp) == 0
    for found in [estimate(job, split, hardware, bfloat16=bfloat16)]
    if found.memory <= 0.9 * hardware.memory
  ]
  return min(fits, key=lambda e: (sum(e.seconds.values()), e.split[1:]), default=None)
