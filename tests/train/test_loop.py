import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from kdjax.train import checkpoint, loop, writers


def fit(workdir, *, feed_options=None, start=None, rows=None, **options):
  state, teacher, runner = start or toy.runner(toy.apply)
  feed = loop.Feed(rows or toy.rows(), 16, seed=5, **(feed_options or {}))
  defaults = {"num_steps": 20, "steps_per_call": 3, "progress": False, "key": jax.random.key(7)}
  return loop.fit(
    runner, state, feed, workdir=workdir, teacher_params=teacher, **defaults | options
  )


def same_bits(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_the_loss_falls(tmp_path):
  lines = []
  fit(tmp_path, num_steps=200, validate_every=50, write=lambda step, numbers: lines.append(numbers))
  assert lines[-1]["train/loss"] < 0.8 * lines[0]["train/loss"]


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
  whole, _ = fit(tmp_path / "whole")
  fit(tmp_path / "parts", num_steps=8)
  parts, position = fit(tmp_path / "parts")
  assert position.step == 20
  assert same_bits(whole, parts)


@pytest.mark.parametrize("steps_per_call", [1, 4, 7])
def test_the_size_of_a_call_changes_nothing(tmp_path, steps_per_call):
  # Another size is another program, whose sums XLA may order otherwise.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    fit(tmp_path / "a")[0],
    fit(tmp_path / "b", steps_per_call=steps_per_call)[0],
  )


def test_streaming_gives_the_same_bits_as_resident_data(tmp_path):
  resident, _ = fit(tmp_path / "a")
  streamed, _ = fit(tmp_path / "b", feed_options={"resident": False})
  assert same_bits(resident, streamed)
  fit(tmp_path / "c", feed_options={"resident": False}, num_steps=7)
  resumed, _ = fit(tmp_path / "c", feed_options={"resident": False})
  assert same_bits(resident, resumed)


def test_the_best_state_by_validation_is_returned(tmp_path):
  values = iter([0.1, 0.9, 0.3, 0.2, 0.5])
  seen = []

  def validate(state):
    seen.append(jax.device_get(state))
    return {"quality": next(values)}

  best, position = fit(tmp_path, validate=validate, metric="quality")
  assert (position.best_value, position.best_step) == (0.9, 8)
  assert same_bits(best, seen[1])


def test_patience_stops_early(tmp_path):
  values = iter([0.5, 0.4, 0.3, 0.9])
  _, position = fit(tmp_path, validate=lambda s: {"q": next(values)}, metric="q", patience=2)
  assert (position.step, position.best_step) == (12, 4)


def test_validations_before_min_best_step_cannot_win(tmp_path):
  values = iter([0.9, 0.8, 0.1, 0.2, 0.15])
  _, position = fit(tmp_path, validate=lambda s: {"q": next(values)}, metric="q", min_best_step=12)
  assert (position.best_step, position.best_value) == (16, 0.2)


def test_a_wrong_metric_name_lists_what_there_is(tmp_path):
  with pytest.raises(ValueError, match=r"\['quality'\], not the metric 'ndcg'"):
    fit(tmp_path, validate=lambda s: {"quality": 1.0}, metric="ndcg")


def test_a_non_finite_loss_names_step_term_and_checkpoint(tmp_path):
  rows = toy.rows()
  fit(tmp_path, num_steps=4, rows=rows)
  poisoned = {**rows, "x": np.where(rows["y"][:, None] == 1, np.nan, rows["x"])}
  with pytest.raises(loop.NonFiniteError) as error:
    fit(tmp_path, rows=poisoned)
  message = str(error.value)
  assert "not finite at step 5: " in message
  assert "label" in message
  assert str(tmp_path / "checkpoints" / "best" / "4") in message


def test_a_changed_configuration_is_refused(tmp_path):
  fit(tmp_path, num_steps=4)
  state, teacher, runner = toy.runner(toy.apply)
  wider = jax.tree.map(lambda x: np.zeros((*x.shape, 2), x.dtype), state)
  with pytest.raises(checkpoint.CheckpointError, match="new --workdir"):
    fit(tmp_path, start=(wider, teacher, runner))


# Orbax leaves a coroutine behind when a restore fails half-way.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named(tmp_path):
  fit(tmp_path, num_steps=4)
  folder = tmp_path / "checkpoints" / "best" / "4"
  for path in folder.rglob("*"):
    if path.is_file() and "METADATA" not in path.name:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
  with pytest.raises(checkpoint.CheckpointError, match=r"best/4"):
    fit(tmp_path)
  gc.collect()


CHILD = """
import os, pathlib, signal, sys
sys.path.insert(0, {tests!r})
import conftest, jax, toy
from kdjax.train import loop, writers
workdir, sleep = pathlib.Path(sys.argv[1]), float(sys.argv[2])
state, teacher, runner = toy.runner(toy.apply)
def validate(state):
  import time; time.sleep(sleep)
  return {{"q": float(state.step)}}
workdir.mkdir(exist_ok=True)
saved = workdir.glob("checkpoints/*/[0-9]*")
start = max([int(p.name) for p in saved if p.name.isdigit()], default=0)
with writers.jsonl_writer(workdir / "metrics.jsonl", resume_step=start) as write:
  final, _ = loop.fit(runner, state, loop.Feed(toy.rows(), 16, seed=5), num_steps=80,
    steps_per_call=3, progress=False, key=jax.random.key(7), teacher_params=teacher,
    workdir=workdir, write=write, validate=validate, metric="q")
import numpy as np
np.savez(workdir / "final.npz", *jax.tree.leaves(final))
"""


def child(workdir, sleep=0.0):
  code = CHILD.format(tests=str(pathlib.Path(__file__).parent))
  path = os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *filter(None, sys.path)])
  return subprocess.Popen(
    [sys.executable, "-c", code, str(workdir), str(sleep)],
    env={**os.environ, "PYTHONPATH": path},
    stderr=subprocess.PIPE,
    text=True,
  )


def wait_for_steps(process, workdir, count):
  metrics = workdir / "metrics.jsonl"
  deadline = time.monotonic() + 120
  while not metrics.exists() or metrics.read_text().count("\n") < count:
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.02)


def final(workdir):
  with np.load(workdir / "final.npz", allow_pickle=False) as file:
    return [file[name] for name in file.files]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted")
  process = child(workdir)
  _, errors = process.communicate(timeout=240)
  assert process.returncode == 0, errors
  return workdir


def test_resuming_after_kill_9_gives_the_same_bits(tmp_path, uninterrupted):
  process = child(tmp_path, sleep=0.05)
  wait_for_steps(process, tmp_path, 4)
  process.kill()
  process.communicate()
  assert not (tmp_path / "final.npz").exists()
  process = child(tmp_path)
  _, errors = process.communicate(timeout=240)
  assert process.returncode == 0, errors
  assert same_bits(final(tmp_path), final(uninterrupted))
  logs = [(p / "metrics.jsonl").read_text().splitlines() for p in (tmp_path, uninterrupted)]
  drop = lambda line: {k: v for k, v in json.loads(line).items() if k != "seconds"}  # noqa: E731
  assert [drop(line) for line in logs[0]] == [drop(line) for line in logs[1]]


def test_sigterm_saves_and_the_run_resumes_to_the_same_bits(tmp_path, uninterrupted):
  process = child(tmp_path, sleep=0.05)
  wait_for_steps(process, tmp_path, 3)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=120)
  assert process.returncode != 0
  assert "stopped by SIGTERM at step" in errors
  process = child(tmp_path)
  _, errors = process.communicate(timeout=240)
  assert process.returncode == 0, errors
  assert same_bits(final(tmp_path), final(uninterrupted))


def test_jsonl_drops_what_will_be_written_again(tmp_path):
  path = tmp_path / "metrics.jsonl"
  with writers.jsonl_writer(path) as write:
    write(10, {"a": 1.0})
    write(20, {"a": 2.0})
  with path.open("a") as file:
    file.write('{"step": 30, "a"')
  with writers.jsonl_writer(path, resume_step=10) as write:
    write(20, {"a": 3.0})
  assert writers.read_jsonl(path) == [{"step": 10, "a": 1.0}, {"step": 20, "a": 3.0}]


def test_jsonl_names_a_damaged_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\ngarbage\n{"step": 2}\n')
  with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
    writers.read_jsonl(path)


def test_tensorboard_files_hold_the_numbers(tmp_path):
  with writers.join([writers.tensorboard_writer(tmp_path)]) as write:
    write(3, {"valid/ndcg@10": 0.25})
  (events,) = tmp_path.glob("events.*")
  # TensorBoard has no "@" in its tags.
  assert b"valid/ndcg_10" in events.read_bytes()


def test_what_is_written_in_the_background_may_be_donated(tmp_path):
  go_on = jax.jit(lambda state: jax.tree.map(lambda x: 1.5 * x + 1, state), donate_argnums=0)
  state = {"table": jnp.arange(2_000_000.0), "small": jnp.ones(3)}
  with checkpoint.open_checkpoints(tmp_path) as checkpoints:
    for step in range(3):
      expected = jax.tree.map(np.array, state)
      checkpoints.save("best", step, state, {"step": step})
      for _ in range(5):
        state = go_on(state)
  with checkpoint.open_checkpoints(tmp_path) as checkpoints:
    found, position = checkpoints.restore("best", jax.tree.map(jnp.zeros_like, state))
  assert position == {"step": 2}
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_run_whose_best_is_past_resumes_from_the_newest(tmp_path):
  options = {"validate": lambda state: {"q": -abs(float(state.step) - 4)}, "metric": "q"}
  whole, position = fit(tmp_path / "whole", num_steps=16, **options)
  assert (position.best_step, position.step) == (4, 16)
  fit(tmp_path / "parts", num_steps=12, **options)
  folders = tmp_path / "parts" / "checkpoints"
  steps = {f.name: sorted(int(p.name) for p in f.iterdir()) for f in folders.iterdir()}
  assert steps == {"best": [4], "latest": [12]}, "every state once"
  lines = []
  again, position = fit(
    tmp_path / "parts", num_steps=16, write=lambda step, numbers: lines.append(step), **options
  )
  assert lines == [16]
  assert position.best_step == 4
  assert same_bits(again, whole)
