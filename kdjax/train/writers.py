"""Where a run's numbers go while it runs: a JSON-lines file, TensorBoard, Weights & Biases."""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

Write = Callable[[int, Mapping[str, float]], None]  # (step, numbers by name).


@contextmanager
def jsonl_writer(path: pathlib.Path, *, resume_step: int = 0) -> Iterator[Write]:
  """One JSON object a line: `{"step": ..., name: number, ...}`, flushed at once.

  Lines after `resume_step` are dropped first: they belong to steps that will be taken again. A line
  cut short by a kill is dropped with them.
  """
  kept = [line for line in read_jsonl(path) if line["step"] <= resume_step]
  path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
  with path.open("a", encoding="utf-8") as file:

    def write(step, numbers):
      file.write(json.dumps({"step": step, **numbers}) + "\n")
      file.flush()

    yield write


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a metrics file; an incomplete last line is left out, a missing file is empty.

  Raises:
    ValueError: naming file and line, if any other line is no JSON object.
  """
  if not path.exists():
    return []
  lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
  result = []
  for number, line in enumerate(lines, start=1):
    try:
      result.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number == len(lines) and not line.endswith("\n"):
        break
      raise ValueError(f"{path}, line {number}: not JSON ({error.msg}); delete the line") from error
  return result


@contextmanager
def tensorboard_writer(folder: pathlib.Path) -> Iterator[Write]:
  """TensorBoard event files in `folder`."""
  import tensorboardX

  with tensorboardX.SummaryWriter(str(folder)) as summary:

    def write(step, numbers):
      for name, value in numbers.items():
        summary.add_scalar(name, value, step)
      summary.flush()

    yield write


@contextmanager
def wandb_writer(
  folder: pathlib.Path, *, project: str, name: str, config: Mapping[str, Any], mode: str
) -> Iterator[Write]:
  """A Weights & Biases run (the extra `track`); `mode="offline"` needs no network or account.

  Raises:
    ImportError: with the mend, if the package is not installed.
  """
  try:
    import wandb
  except ImportError as error:
    raise ImportError(
      "--wandb needs the package wandb: pip install 'kdjax[track]', or --wandb=disabled"
    ) from error
  folder.mkdir(parents=True, exist_ok=True)
  run = wandb.init(
    project=project, name=name, config=dict(config), mode=mode, dir=str(folder), resume="allow"
  )
  try:
    yield lambda step, numbers: run.log(dict(numbers), step=step)
  finally:
    run.finish()


@contextmanager
def join(writers: Sequence[Any]) -> Iterator[Write]:
  """One writer that writes to all of `writers` (context managers)."""
  with ExitStack() as stack:
    opened = [stack.enter_context(writer) for writer in writers]

    def write(step, numbers):
      for one in opened:
        one(step, numbers)

    yield write
