"""One run over several processes, by flags: how they find each other, and what ends them."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from experiments.config import ProcessConfig
from kdjax.train import processes, watch

_LINGER_SECONDS = 4.0


@contextlib.contextmanager
def joined(config: ProcessConfig, workdir: str) -> Iterator[None]:
  """This process as one of those that the flags speak of; nothing where they name none.

  A process that hears that another is gone prints so and ends, with exit status 1. All but the
  first print nothing else but errors.

  Raises:
    ValueError: naming the flag that is missing.
  """
  if not _start(config):
    yield
    return
  number, count = jax.process_index(), jax.process_count()

  def lost(gone: int) -> NoReturn:
    print(
      f"error: process {gone} of {count} has ended before the run was done, so that process "
      f"{number} cannot go on; its own output says why, unless it was killed. Start all processes "
      f"again with the same flags: they resume from the newest checkpoint in {workdir}, also with "
      "another number of processes",
      file=sys.stderr,
      flush=True,
    )
    # Not sys.exit: what JAX does then waits for the process that is gone.
    os._exit(1)

  host = config.coordinator_address.rpartition(":")[0] or None
  with contextlib.ExitStack() as stack:
    if number:
      stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
    stack.enter_context(watch.watch(lost, host=host))
    yield


def _start(config: ProcessConfig) -> bool:
  """Whether the flags name several processes; then they have met."""
  given: dict[str, Any] = {
    "coordinator_address": config.coordinator_address or None,
    "num_processes": config.num_processes,
    "process_id": config.process_id,
  }
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if config.distributed == "off":
    if len(missing) == len(given):
      return False
    if missing:
      raise ValueError(
        f"{', '.join(missing)} not given: a run of several processes needs all three flags, or "
        "--distributed=auto where a cluster's scheduler says them"
      )
  # The runs catch SIGTERM themselves; JAX's own handler would only note it.
  jax.config.update("jax_enable_preemption_service", False)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  if not missing:  # Nothing is asked of the environment.
    given["cluster_detection_method"] = "deactivate"
  jax.distributed.initialize(**given)
  return True


def leave() -> NoReturn:
  """Ends a process of several after an error, which has been printed."""
  if processes.is_first():  # JAX aborts the others when it goes: let them say theirs before.
    time.sleep(_LINGER_SECONDS)
  os._exit(1)
