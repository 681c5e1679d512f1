"""What the processes of one run agree on. With one process all of this does nothing."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils


def several() -> bool:
  """Whether this process is one of several that `jax.distributed` joined."""
  # Asked in this order, a program that needs no device starts none.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this process writes what is written once: metrics, results, models, plots."""
  return not several() or jax.process_index() == 0


def wait(name: str) -> None:
  """Goes on when every process has come here; `name` tells the places in a program apart."""
  if several():
    multihost_utils.sync_global_devices(name)


def any_of(flag: bool) -> bool:
  """Whether it is True on any process."""
  return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if several() else flag


def of_first(numbers: Mapping[str, float]) -> dict[str, float]:
  """The numbers of the first process, on all of them: nothing may hang on another's last bit.

  Example:
    >>> of_first({"ndcg": 0.5})
    {'ndcg': 0.5}
  """
  if not several():
    return dict(numbers)
  values = np.array([float(value) for value in numbers.values()])
  # As bits: JAX would round them to float32.
  said = multihost_utils.broadcast_one_to_all(values.view(np.uint32))
  return dict(zip(numbers, np.array(said).view(np.float64).tolist(), strict=True))
