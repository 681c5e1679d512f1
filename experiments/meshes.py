"""The devices of a run, by the flags: who shares a batch, and who the parameters."""

import math

import jax
from jax.sharding import Mesh

from experiments.config import DistillConfig, FitConfig
from kdjax.train import placement, processes


def data_devices(fit: FitConfig) -> int:
  """How many devices share a batch."""
  if fit.parallel == "pmap":
    return fit.data_devices or len(jax.devices())
  whole = fit.fsdp_devices * fit.model_devices
  return fit.fsdp_devices * (fit.data_devices or max(1, len(jax.devices()) // whole))


def run_mesh(fit: FitConfig) -> Mesh | None:
  """The mesh that the flags ask for; None on a single device, and under pmap.

  Raises:
    ValueError: if there are not as many devices, or pmap is asked for what it cannot do.
  """
  if fit.parallel == "pmap":
    if processes.several() or fit.fsdp_devices * fit.model_devices > 1:
      raise ValueError("--parallel=pmap runs in one process and splits no parameters; leave it out")
    return None
  shared = data_devices(fit)
  if not processes.several() and shared * fit.model_devices == 1:
    return None
  try:
    return placement.make_mesh(
      data=shared // fit.fsdp_devices, fsdp=fit.fsdp_devices, model=fit.model_devices
    )
  except ValueError as error:
    raise ValueError(f"--data_devices, --fsdp_devices, --model_devices: {error}") from error


def teacher_mesh(distill: DistillConfig, mesh: Mesh | None) -> Mesh | None:
  """The same devices as the teacher is split over them, by --teacher_mesh.

  Raises:
    ValueError: if those are not as many.
  """
  if not distill.teacher_mesh:
    return mesh
  devices = [] if mesh is None else list(mesh.devices.flat)
  whole = math.prod(distill.teacher_mesh)
  if len(distill.teacher_mesh) != 2 or whole < 1 or len(devices) % whole:
    given = ",".join(map(str, distill.teacher_mesh))
    raise ValueError(
      f"--teacher_mesh={given} must be <fsdp>,<model>, whose product divides the devices of the "
      f"run ({max(1, len(devices))}, by --data_devices, --fsdp_devices and --model_devices)"
    )
  fsdp, model = distill.teacher_mesh
  return placement.make_mesh(fsdp=fsdp, model=model, devices=devices)
