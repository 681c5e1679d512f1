"""What catalogue losses compile to for a TPU and a GPU, on a machine that has neither.

  python -m benchmarks.accelerators

XLA compiles for a TPU v5e and an H100 without the device. Loss and gradients (query and table) in
blocks as the library chooses them (`ours`), in parts of 2,048 items (`lean`), and of dense logits:
`temporary_mb` is XLA's analysis of the compiled program, beside inputs and outputs; `times_dense`,
for the TPU, is the time of dense over that of the variant by the cycles that the TPU compiler
expects of every instruction, loops counted. That is its own estimate of its own program, and no
measurement: nothing runs here. Ours must not hold an array of [tokens, items] anywhere.

The compilers come with `pip install libtpu` and `pip install jax-cuda12-plugin jax-cuda12-pjrt
nvidia-cuda-nvcc-cu12`, in the versions of `pip install -e '.[tpu]'` and `'.[cuda]'`. One that is
not there is named as missing.
"""

import argparse
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.catalog_loss import made_with
from benchmarks.gpu_losses import LEAN
from kdjax import losses
from kdjax.collectives import count_runs
from kdjax.types import FactoredLogits

# Of an H100 SXM: NVIDIA's data sheet and programming guide (compute capability 9.0).
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000  device_memory_size: 84942979072
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  runtime_version: "12.8.0"  driver_version: "13.0.0"  dnn_version: "9.10.0"
  compile_time_toolkit_version: "12.8.0"
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 8 }
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Size(NamedTuple):
  """A student of `width` and a teacher of `teacher_width` over all items."""

  tokens: int
  items: int
  width: int
  teacher_width: int
  dtype: str


SIZES = {
  "language model": Size(8192, 128_256, 4096, 4096, "bfloat16"),
  "recommender": Size(8192, 100_000, 64, 128, "float32"),
  "small recommender": Size(16_384, 3416, 64, 128, "float32"),
}
LOSSES = {
  "cross_entropy": (losses.catalog_cross_entropy_loss, losses.cross_entropy_loss),
  "kl": (losses.catalog_kl_loss, losses.kl_loss),
  "jensen_shannon": (losses.catalog_jensen_shannon_loss, losses.jensen_shannon_loss),
}


class Chip(NamedTuple):
  """What is compiled for: JAX's name of the backend, its compiler's packages, and its devices."""

  backend: str
  packages: tuple[str, ...]
  devices: Callable[[], Any]


def _v5e() -> Any:
  return topologies.get_topology_desc("v5e:2x4", platform="tpu").devices


def _h100() -> Any:
  return topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1").devices


CHIPS = {
  "TPU v5e": Chip("tpu", ("libtpu",), _v5e),
  "H100": Chip("gpu", ("jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12"), _h100),
}


def missing(chip: Chip) -> list[str]:
  """The packages of its compiler that are not installed."""
  names = {d.metadata["Name"].replace("_", "-") for d in importlib.metadata.distributions()}
  return [package for package in chip.packages if package not in names]


def step(name: str, variant: str) -> Callable[..., Any]:
  """Loss and gradients by query and table, of `(query, table, teacher, teacher_table, labels)`."""
  blocked, of_logits = LOSSES[name]
  product = functools.partial(jnp.einsum, "td,vd->tv", preferred_element_type=jnp.float32)

  def loss(query, table, teacher, teacher_table, labels):
    if variant == "dense":
      target = labels if name == "cross_entropy" else product(teacher, teacher_table)
      return of_logits(product(query, table), target)
    target = labels if name == "cross_entropy" else FactoredLogits(teacher, teacher_table)
    block = LEAN if variant == "lean" else None
    return blocked(FactoredLogits(query, table), target, block=block)

  return jax.value_and_grad(loss, (0, 1))


def arguments(size: Size, devices: Any) -> list[jax.ShapeDtypeStruct]:
  """Shapes of what `step` is called with, on one of the devices."""
  place = NamedSharding(Mesh(np.array(devices[:1]), ("one",)), P())
  shapes = [(rows, width) for width in size[2:4] for rows in (size.tokens, size.items)]
  tree = [jax.ShapeDtypeStruct(shape, jnp.dtype(size.dtype), sharding=place) for shape in shapes]
  return [*tree, jax.ShapeDtypeStruct((size.tokens,), jnp.int32, sharding=place)]


def measure(chip: Chip, devices: Any, size: Size, name: str) -> dict[str, dict[str, float]]:
  """The variants of a loss, compiled: memory, and the TPU's estimate of time beside dense's."""
  args, found = arguments(size, devices), {}
  for variant in ("ours", "lean", "dense"):
    if variant == "lean" and size.items <= LEAN * 2:
      continue
    # The library asks where it runs to choose blocks, and nothing runs where this compiles for.
    with mock.patch.object(jax, "default_backend", return_value=chip.backend):
      jax.clear_caches()
      compiled = jax.jit(step(name, variant)).lower(*args).compile()
    text = compiled.as_text()
    if variant != "dense" and f"[{size.tokens},{size.items}]" in text:
      raise RuntimeError(f"{name}, {variant}: the program holds [tokens, items]")
    found[variant] = {"temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6}
    if chip.backend == "tpu":
      found[variant]["cycles"] = cycles(text)
    print(f"{name}, {size}, {variant}: {found[variant]}", flush=True)
  jax.clear_caches()
  for variant in found.values():
    # A program that needs next to nothing would give a number without meaning.
    held = max(variant["temporary_mb"], 1e-3 * found["dense"]["temporary_mb"])
    variant["times_less_memory"] = found["dense"]["temporary_mb"] / held
    if "cycles" in variant:
      variant["times_dense"] = found["dense"]["cycles"] / variant["cycles"]
  return found


def cycles(text: str) -> int:
  """What the TPU compiler expects of all instructions, those of a loop as often as it runs."""
  runs = count_runs(text)
  bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
  found, inside = 0, None
  for line in text.splitlines():
    if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
      # What a fusion consists of has no cycles of its own.
      inside = header[2] if header[1] or header[2] in bodies else None
    elif inside and (own := re.search(r'"estimated_cycles":"(\d+)"', line)):
      times = runs.get(inside, 1)
      if times is None:
        raise ValueError(f"the program does not say how often {inside} runs")
      found += times * int(own[1])
  return found


def table_of(result: dict[str, Any]) -> str:
  """The figures as Markdown."""
  lines = [
    "| chip | size | loss | variant | temporary MB | times less than dense (1,000 at most) | "
    "speed, dense = 1, estimated |",
    "|---|---|---|---|---:|---:|---:|",
  ]
  for chip, sizes in result["chips"].items():
    for size, by_loss in sizes.items():
      for name, variants in by_loss.items():
        for variant, v in variants.items():
          speed = f"{v['times_dense']:.2f}" if "times_dense" in v else ""
          lines.append(
            f"| {chip} | {size} | {name} | {variant} | {v['temporary_mb']:,.0f} | "
            f"{v['times_less_memory']:,.1f} | {speed} |"
          )
  lines += [
    f"\nMissing for {chip}: {', '.join(names)}." for chip, names in result["missing"].items()
  ]
  return "\n".join(lines)


def prepare() -> None:
  """Tells JAX and the compilers that no device is here."""
  jax.config.update("jax_platforms", "cpu")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  options = "--xla_gpu_autotune_level=0"  # Tuning runs kernels on a device.
  toolkit = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cuda_nvcc")
  if toolkit and toolkit.submodule_search_locations:
    options += f" --xla_gpu_cuda_data_dir={toolkit.submodule_search_locations[0]}"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {options}"


def run(output: pathlib.Path) -> dict[str, Any]:
  """Compiles, prints and writes."""
  result: dict[str, Any] = {
    "command": "python -m benchmarks.accelerators " + " ".join(sys.argv[1:]),
    "date": datetime.date.today().isoformat(),
    "made_with": made_with(),
    "sizes": {name: size._asdict() for name, size in SIZES.items()},
    "missing": {},
    "chips": {},
  }
  for chip_name, chip in CHIPS.items():
    if gone := missing(chip):
      print(f"{chip_name}: pip install {' '.join(gone)}", flush=True)
      result["missing"][chip_name] = gone
      continue
    for package in chip.packages:
      result["made_with"][package] = importlib.metadata.version(package)
    devices = chip.devices()
    result["chips"][chip_name] = {
      size_name: {name: measure(chip, devices, size, name) for name in LOSSES}
      for size_name, size in SIZES.items()
    }
  if not result["chips"]:
    print("No compiler of an accelerator is installed; nothing was written.")
    return result
  output.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
  output.with_suffix(".md").write_text(table_of(result) + "\n", encoding="utf-8")
  print(table_of(result))
  return result


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", type=pathlib.Path, default="benchmarks/results/accelerators")
  options = parser.parse_args()
  prepare()
  run(options.output)
