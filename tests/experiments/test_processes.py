"""Real processes on loopback: the same numbers as one, whatever stops them on the way."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny

from experiments import distill, joining, stored, train
from experiments.config import ProcessConfig

ROOT = pathlib.Path(__file__).parents[2]
# Steps of 8 rows on 1, 2 and 4 devices alike. Adam would blow up the rounding of gradients of 0.
FIT = dataclasses.replace(tiny.FIT, epochs=6, batch_size=14, optimizer="sgd", learning_rate=0.05)
DATA = dataclasses.replace(tiny.DATA, max_length=4)
FLAGS = (
  *("--synthetic_users=60", "--synthetic_items=40", "--synthetic_length=12", "--max_length=4"),
  *("--epochs=6", "--batch_size=14", "--optimizer=sgd", "--learning_rate=0.05", "--layers=1"),
  *("--num_negatives=8", "--heads=2", "--noprogress", "--notensorboard"),
)
BOUND = 400  # Seconds, on a slow machine; a run takes a fraction.


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp("one") / "teacher"
  train.run(train.Config(DATA, tiny.TEACHER, FIT), folder)
  return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
  """Compiled programs, for the runs that are resumed."""
  return os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def config(teacher):
  made = tiny.distill_config(teacher, fit=FIT)
  return dataclasses.replace(made, data=DATA)


@pytest.fixture(scope="module")
def expected(config, tmp_path_factory):
  """What one process with one device learns."""
  folder = tmp_path_factory.mktemp("one") / "student"
  distill.run(config, folder)
  return folder


def start(count, programs, job, workdir, *flags):
  """The processes of one run, of one device each."""
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  environment = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
    "JAX_COMPILATION_CACHE_DIR": programs,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
  }
  names = [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={count}"]
  command = [sys.executable, "-m", f"experiments.{job}", f"--workdir={workdir}", *FLAGS, *flags]
  return [
    subprocess.Popen(
      [*command, *names, f"--process_id={number}"], cwd=ROOT, env=environment, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    for number in range(count)
  ]  # fmt: skip


def end(started, *, seconds=BOUND):
  """Exit statuses, and what the processes printed and complained of."""
  deadline = time.monotonic() + seconds
  try:
    said = [p.communicate(timeout=max(0.1, deadline - time.monotonic())) for p in started]
  finally:
    for process in started:
      process.kill()
  return [p.returncode for p in started], *zip(*said, strict=True)


def count_validations(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


def wait_for_validations(started, workdir, count):
  deadline = time.monotonic() + BOUND
  while count_validations(workdir) < count:
    ended = [p.returncode for p in started if p.poll() is not None]
    assert not ended, end(started)
    assert time.monotonic() < deadline
    time.sleep(0.01)


def assert_same_run(workdir, expected):
  """Parameters and every number on the way, and nothing written twice."""
  both = [stored.load_model(folder, flag="--").params for folder in (workdir, expected)]
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5), *both)
  lines = [
    [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for folder in (workdir, expected)
  ]
  results = [json.loads((folder / "result.json").read_text()) for folder in (workdir, expected)]
  quality, right = ({k: v["value"] for k, v in r["quality"].items()} for r in results)
  assert quality == pytest.approx(right, rel=1e-5), "judged by all processes together"
  assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
  for line, other in zip(*lines, strict=True):
    for name in line.keys() - {"seconds"}:
      assert line[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name


def test_sigterm_on_one_stops_both_and_one_process_goes_on(teacher, programs, tmp_path):
  flags = ("--dim=16", "--model_devices=2", "--stream")
  two = start(2, programs, "train", tmp_path / "run", *flags)
  wait_for_validations(two, tmp_path / "run", 2)
  two[1].send_signal(signal.SIGTERM)
  codes, printed, errors = end(two)
  assert codes == [1, 1], errors
  steps = [re.findall(r"stopped by SIGTERM at step (\d+); run again", text) for text in errors]
  assert steps[0] == steps[1] != []
  assert "users 60 | items 40" in printed[0]
  assert all(line.startswith("[Gloo]") for line in printed[1].splitlines())
  train.run(
    train.Config(DATA, tiny.TEACHER, dataclasses.replace(FIT, stream=True)), tmp_path / "run"
  )
  assert_same_run(tmp_path / "run", teacher)


def test_killed_processes_end_the_others_and_four_go_on(teacher, expected, programs, tmp_path):
  flags = ("--dim=8", f"--teacher={teacher}", f"--prepared_dir={tmp_path / 'prepared'}")
  for victim in (1, 0):
    before = count_validations(tmp_path)
    two = start(2, programs, "distill", tmp_path, *flags, "--fsdp_devices=2")
    wait_for_validations(two, tmp_path, before + 1)
    two[victim].kill()
    codes, _, errors = end(two, seconds=60)  # Much less than it takes until heartbeats fail.
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] != 0
    told = errors[1 - victim]
    assert f"process {victim} of 2 has ended before the run was done" in told
    assert f"they resume from the newest checkpoint in {tmp_path}" in told
  axes = ("--fsdp_devices=2", "--teacher_mesh=2,2")
  codes, _, errors = end(start(4, programs, "distill", tmp_path, *flags, *axes))
  assert codes == [0] * 4, errors
  assert_same_run(tmp_path, expected)


def test_flags_that_name_no_whole_run_are_refused():
  alone = joining.joined(ProcessConfig(num_processes=2), "run")
  with pytest.raises(ValueError, match="--coordinator_address, --process_id not given"), alone:
    pass


def test_other_rows_in_a_step_are_refused(config, expected, tmp_path):
  shutil.copytree(expected, tmp_path / "run")
  (tmp_path / "run" / "result.json").unlink()
  wider = dataclasses.replace(config, fit=dataclasses.replace(FIT, fsdp_devices=3))
  with pytest.raises(ValueError, match="the steps so far had 8 rows, now they have 9: a batch"):
    distill.run(wider, tmp_path / "run")
