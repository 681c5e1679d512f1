"""What every binary does around its `run`: flags in, errors out."""

import contextlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging

import kdjax.flags
from experiments import joining
from experiments.config import ProcessConfig
from kdjax.data.errors import DataError
from kdjax.store import StoreError
from kdjax.train import processes
from kdjax.train.checkpoint import CheckpointError
from kdjax.train.loop import NonFiniteError

# What a user can mend; anything else is a defect of ours and keeps its traceback.
_USER_ERRORS = (
  DataError,
  StoreError,
  CheckpointError,
  NonFiniteError,
  ValueError,
  ImportError,
  OSError,
)


def main(
  config_type: type,
  run: Callable[[Any, str], dict[str, Any]],
  workdir: str | None,
  *,
  several: bool = False,
) -> None:
  """Parses the flags of `config_type` and calls `run(config, workdir)`.

  Args:
    config_type: the frozen dataclass of options; its docstring opens `--help`.
    run: the experiment.
    workdir: default of `--workdir`; None makes the flag required.
    several: whether several processes may run it together.
  """
  groups = (ProcessConfig, config_type) if several else (config_type,)
  for group in groups:
    kdjax.flags.define(group)
  flags.DEFINE_string("workdir", workdir, "Folder of this run; a run stopped there goes on.")
  flags.DEFINE_string(
    "compile_cache",
    None,
    "Folder where compiled programs are kept, so that later runs start without compiling; "
    "$JAX_COMPILATION_CACHE_DIR when not given, and none without that.",
  )
  flags.DEFINE_bool("traceback", False, "Show the whole traceback of an error.")
  if workdir is None:
    flags.mark_flag_as_required("workdir")
  # --help lists the flags of the main module only; these are its own, wherever they were defined.
  options = [name for group in groups for name in kdjax.flags.flat(group())]
  for name in ("workdir", "compile_cache", "traceback", *options):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
  sys.modules["__main__"].__doc__ = sys.modules["__main__"].__doc__ or config_type.__doc__

  def start(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"unexpected argument {argv[1]!r}; options start with --")
    logging.set_verbosity(logging.WARNING)
    if flags.FLAGS.compile_cache:
      jax.config.update("jax_compilation_cache_dir", flags.FLAGS.compile_cache)
      jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    folder = flags.FLAGS.workdir
    alone = contextlib.nullcontext()
    try:
      with joining.joined(kdjax.flags.parsed(ProcessConfig), folder) if several else alone:
        run(kdjax.flags.parsed(config_type), folder)
    except Exception as error:
      if isinstance(error, _USER_ERRORS) and not flags.FLAGS.traceback:
        print(f"error: {error}", file=sys.stderr, flush=True)
      elif processes.several():
        traceback.print_exception(error)
      else:
        raise
      if processes.several():
        joining.leave()
      sys.exit(1)

  app.run(start)
