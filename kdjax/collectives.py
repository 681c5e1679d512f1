"""The collectives of a compiled program: what its devices tell each other, counted."""

import math
import re
from typing import NamedTuple

_BYTES: dict[str, float] = {"s4": 0.5, "u4": 0.5, "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2}
_BYTES |= {"bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_CALL = re.compile(rf"= (.+?) ({'|'.join(_KINDS)})(?:-start)?\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_LISTED, _IOTA = re.compile(r"replica_groups=\{\{([\d,]+)\}"), re.compile(r"=\[(\d+),(\d+)\]<=")
_NAMED = re.compile(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}")
_SIZE = re.compile(r"'(\w+)'=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CALLS = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Collective(NamedTuple):
  """A collective operation of a compiled program.

  Attributes:
    kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or "collective-permute".
    devices: of a group that talks.
    payload: bytes of the result (of a reduce-scatter: of what is scattered).
    times: how often it runs, loops of known length counted.
  """

  kind: str
  devices: int
  payload: int
  times: int

  @property
  def sent(self) -> float:
    r"""Bytes that a device sends, around a ring: $(n - 1) / n$ of the payload, twice to reduce."""
    if self.kind == "collective-permute":
      return self.times * self.payload
    rounds = 2 if self.kind == "all-reduce" else 1
    return self.times * self.payload * rounds * (self.devices - 1) / self.devices


def read_collectives(text: str) -> list[Collective]:
  """The collectives among several devices of a compiled program.

  Args:
    text: `jax.jit(fn).lower(...).compile().as_text()`.

  Returns:
    One `Collective` each, in the order of the program; those of one device alone are left out, and
    one that is started, awaited and finished in several places counts once.

  Raises:
    ValueError: if one runs in a loop whose length the program does not say.

  Example:
    >>> read_collectives("%r = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add")
    [Collective(kind='all-reduce', devices=2, payload=32, times=1)]
  """
  times = count_runs(text)
  starts = _async_starts(text)
  found, inside = [], ""
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      inside = header[1]
      continue
    if not (call := _CALL.search(line)):
      continue
    kind, devices = call[2], _group(line)
    channel = _CHANNEL.search(line)
    if devices == 1 or (channel and starts.get(channel[1], inside) != inside):
      continue
    shapes = call[1]
    if "-start(" in line and kind != "all-reduce" and shapes.startswith("("):
      shapes = shapes[len(shapes) // 2 :]  # Operand and result: the result is the second half.
    payload = sum(
      _BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
      for dtype, dims in _ARRAY.findall(shapes)
    )
    if kind == "reduce-scatter":
      payload *= devices
    runs = times.get(inside, 1)
    if runs is None:
      raise ValueError(f"the program does not say how often {kind} in {inside} runs")
    found.append(Collective(kind, devices, int(payload), runs))
  return found


def _async_starts(text: str) -> dict[str, str]:
  """By channel, where a collective starts that a TPU runs beside other work."""
  starts: dict[str, str] = {}
  channels: list[str] = []
  inside = ""
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      inside, channels = header[1], []
    elif _CALL.search(line) and (channel := _CHANNEL.search(line)):
      channels.append(channel[1])
    elif "AsyncCollectiveStart" in line:
      starts |= dict.fromkeys(channels, inside)
  return starts


def _group(line: str) -> int:
  """How many devices talk to each other: groups are listed, counted, or axes of a mesh."""
  if named := _NAMED.search(line):
    sizes = dict(_SIZE.findall(named[1]))
    return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", named[2]))
  if listed := _LISTED.search(line):
    return listed[1].count(",") + 1
  if iota := _IOTA.search(line):
    return int(iota[2])
  return 2 if "source_target_pairs" in line else 1


def count_runs(text: str) -> dict[str, int | None]:
  r"""How often each computation of a compiled program runs, by name.

  Args:
    text: `jax.jit(fn).lower(...).compile().as_text()`.

  Returns:
    Of all that are called, loops counted; None where a loop does not say how often. XLA notes that
    beside some loops; a scan's is the one constant that its condition compares with.

  Example:
    >>> count_runs("ENTRY %main () -> f32[] {\n %r = f32[] fusion(), calls=%add")
    {'add': 1}
  """
  callers: dict[str, list[tuple[str, int | None]]] = {}
  bounds: dict[str, list[int]] = {}
  upwards = set()
  inside = ""
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      inside = header[1]
    elif bound := _BOUND.search(line):
      bounds.setdefault(inside, []).append(int(bound[1]))
    elif "direction=LT" in line:
      upwards.add(inside)
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      inside = header[1]
      continue
    names = _CALLS.findall(line)
    for branches in _BRANCHES.findall(line):
      names += [name.strip().lstrip("%") for name in branches.split(",")]
    trips: int | None = 1
    if " while(" in line:
      known, condition = _TRIPS.search(line), _CONDITION.search(line)
      trips = int(known[1]) if known else None
      limits = bounds.get(condition[1], []) if condition and condition[1] in upwards else []
      if not known and len(limits) == 1:
        trips = limits[0]
    for name in names:
      callers.setdefault(name, []).append((inside, trips))

  def count(name: str) -> int | None:
    total = 0
    for caller, trips in callers.get(name, []):
      outer = count(caller)
      if outer is None or trips is None:
        return None
      total += outer * trips
    return total if name in callers else 1

  return {name: count(name) for name in callers}
