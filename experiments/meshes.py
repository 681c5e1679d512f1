"""The devices of a run, by the flags: who shares a batch, and who the parameters."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.config import DistillConfig, FitConfig, MeshConfig
from kdjax.models.decoder import Cached
from kdjax.train import placement, processes
from kdjax.types import Apply, Batch, Params


def data_devices(fit: FitConfig) -> int:
  """How many devices share a batch."""
  if fit.parallel == "pmap":
    return fit.data_devices or len(jax.devices())
  return _share_batch(fit)


def _share_batch(config: MeshConfig) -> int:
  whole = config.fsdp_devices * config.model_devices
  return config.fsdp_devices * (config.data_devices or max(1, len(jax.devices()) // whole))


def run_mesh(fit: FitConfig) -> Mesh | None:
  """The mesh of a training; None on a single device, and under pmap.

  Raises:
    ValueError: if there are not as many devices, or pmap is asked for what it cannot do.
  """
  if fit.parallel == "pmap":
    if processes.several() or fit.fsdp_devices * fit.model_devices > 1:
      raise ValueError("--parallel=pmap runs in one process and splits no parameters; leave it out")
    return None
  return mesh_of(fit)


def mesh_of(config: MeshConfig) -> Mesh | None:
  """The mesh that the flags ask for; None on a single device.

  Raises:
    ValueError: if there are not as many devices.
  """
  shared, fsdp = _share_batch(config), config.fsdp_devices
  if not processes.several() and shared * config.model_devices == 1:
    return None
  try:
    return placement.make_mesh(data=shared // fsdp, fsdp=fsdp, model=config.model_devices)
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


def on_mesh(apply: Apply, mesh: Mesh | None) -> Apply:
  """A model that computes on the mesh; on one device without a mesh."""
  return apply if mesh is None else placement.on_mesh(apply, mesh)


def placed(apply: Apply, params: Params, mesh: Mesh | None) -> tuple[Apply, Params]:
  """A model that computes on the mesh, and its parameters there; on one device without a mesh."""
  return on_mesh(apply, mesh), put(params, mesh)


def placed_cached(cached: Cached, params: Params, mesh: Mesh | None) -> tuple[Cached, Params]:
  """`placed` of a decoder that reads on: parameters are gathered over `fsdp` as it uses them."""
  if mesh is None:
    return cached, put(params, mesh)

  def extend(params: Params, batch: Batch, cache: Any) -> Any:
    places = placement.shardings(params, mesh, in_use=True)
    params = jax.lax.with_sharding_constraint(params, places)
    return cached.extend(params, placement.split_batch(batch, mesh), cache)

  return Cached(cached.init, extend), put(params, mesh)


def put(params: Params, mesh: Mesh | None) -> Params:
  """Parameters as the rules split them over the mesh; on one device without a mesh."""
  if mesh is None:
    return jax.tree.map(jnp.asarray, params)
  return placement.put(params, placement.shardings(params, mesh))
