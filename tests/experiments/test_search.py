"""The search under a budget: its order, its verdict, that it goes on with what it trained."""

import dataclasses
import json

import pytest
import tiny

from experiments import compress, fitting, problems, runs, search, stored
from experiments.search import SearchConfig, Trial


def numbers(megabytes, p99, drop):
  return {"bytes": megabytes * 1e6, "p99_ms": p99, "drop": drop}


FOUND = {
  "large": numbers(3.0, 2.0, 0.00),
  "middle": numbers(2.0, 1.0, 0.01),
  "worse": numbers(2.5, 1.5, 0.02),
  "small": numbers(1.0, 0.5, 0.10),
}


def test_the_smallest_within_all_limits_and_the_frontier():
  result = search.choose(SearchConfig(max_mb=2.6, max_p99_ms=1.6, max_quality_drop=0.02), FOUND)
  assert result == {"frontier": ["large", "middle", "small"], "chosen": "middle", "missed": []}


def test_what_cannot_be_met_is_said_by_how_much():
  result = search.choose(SearchConfig(max_mb=1.5, max_quality_drop=0.02), FOUND)
  assert result["chosen"] is None
  assert result["missed"] == [
    "--max_mb=1.5: within the other limits the least is 2 (middle), 0.5 too much",
    "--max_quality_drop=0.02: within the other limits the least is 0.1 (small), 0.08 too much",
  ]
  impossible = SearchConfig(max_mb=0.5, max_p99_ms=0.1, max_quality_drop=0.001)
  assert search.choose(impossible, FOUND)["missed"] == ["no trial keeps to all limits but one"]
  assert search.choose(impossible, {})["missed"] == ["no trial was trained"]


def test_cheap_trials_first_then_what_may_still_win(tmp_path):
  trials = [
    Trial(dim, 1, sparsity, bits)
    for dim in (32, 16) for sparsity in (0.0, 0.5) for bits in (32, 8, 4)
  ]  # fmt: skip
  planned = {t.name: {"bytes": t.dim * (1 - t.sparsity) * t.bits, "p50_ms": 1.0} for t in trials}
  steps = {"distill": 100, "prune": 60}
  limits, found, order = SearchConfig(max_quality_drop=0.1), {}, []
  rest = list(trials)
  while rest:
    trial = min(rest, key=lambda t: search.urgency(t, limits, found, planned, steps, tmp_path))
    rest.remove(trial)
    order.append(trial.name)
    for name in (trial.student, trial.recovered):
      done = tmp_path / "trials" / name / runs.RESULT_FILE
      done.parent.mkdir(parents=True, exist_ok=True)
      done.write_text("{}")
    drop = 0.05 if trial.dim == 32 else 0.3
    found[trial.name] = numbers(planned[trial.name]["bytes"] / 1e6, 1.0, drop)
  # Both students cost the same, so the smaller comes first, and its float form is free after it.
  assert order[:2] == ["dim16-layers1-int8", "dim16-layers1"]
  # They lose too much: what is made from them waits. The other student keeps to the limit, and only
  # what is smaller than its int8 form may still win, the smallest first.
  assert order[2:4] == ["dim32-layers1-int8", "dim32-layers1-sparse50-train4-int4"]
  assert order[4] == "dim16-layers1-sparse50-train4-int4"


def test_what_is_clearly_too_large_or_too_slow_is_never_trained():
  planned = {
    "a": {"bytes": 1.05e6, "p50_ms": 1.0},
    "b": {"bytes": 1.2e6, "p50_ms": 1.0},
    "c": {"bytes": 0.5e6, "p50_ms": 3.0},
  }
  out = dict(search.ruled_out(SearchConfig(max_mb=1.0, max_p99_ms=2.0), planned))
  assert set(out) == {"b", "c"}
  assert "--max_mb=1" in out["b"]
  assert "--max_p99_ms=2" in out["c"]


@pytest.mark.parametrize(
  "change", [{"search_dims": ()}, {"search_bits": (6,)}, {"search_sparsities": (1.0,)}]
)
def test_flags_that_do_not_fit_are_named(change):
  (flag,) = change
  with pytest.raises(ValueError, match=f"--{flag}"):
    search.all_trials(SearchConfig(**change), None)


def small_search(**limits):
  fit = dataclasses.replace(tiny.FIT, epochs=1)
  config = tiny.compress_config(
    limits=SearchConfig(
      search_dims=(4,), search_layers=(1,), search_sparsities=(0.5,), search_bits=(8, 4),
      **limits,
    )
  )  # fmt: skip
  student = dataclasses.replace(config.student, heads=1)
  return dataclasses.replace(config, student=student, student_fit=fit, recovery_fit=fit)


def test_a_search_finds_reports_and_goes_on(tmp_path, capsys):
  # A budget for the student and one of the two trainings that start from it.
  config = small_search(max_quality_drop=1.0)
  task = problems.make_task(config.data, "sasrec")
  budget = sum(fitting.count_steps(task, fit) for fit in (config.student_fit, config.recovery_fit))
  first = compress.run(small_search(max_quality_drop=1.0, budget_steps=budget), tmp_path)
  assert first["job"] == "search"
  assert first["steps"] == budget
  assert len(first["left"]) == 1
  assert all(f"--budget_steps={budget} are spent" in why for why in first["left"].values())
  trained = {p.parent.name for p in (tmp_path / "trials").glob("*/result.json")}
  times = {name: (tmp_path / "trials" / name / "result.json").stat().st_mtime for name in trained}

  # More budget and another limit: what was trained stays as it is.
  second = compress.run(small_search(max_quality_drop=1.0, max_mb=1.0), tmp_path)
  assert second["steps"] > first["steps"]
  for name, when in times.items():
    assert (tmp_path / "trials" / name / "result.json").stat().st_mtime == when
  assert second["chosen"] in second["frontier"]
  assert not second["left"]
  rows = {row["name"]: row["search"] for row in second["rows"] if row["name"] != "teacher"}
  assert len(rows) == 2
  chosen = rows[second["chosen"]]
  assert chosen["bytes"] == min(x["bytes"] for x in rows.values() if x["drop"] <= 1.0)
  assert (tmp_path / "best" / "model.safetensors").stat().st_size == chosen["bytes"]
  assert stored.load_model(tmp_path / "best", flag="--").family == "sasrec"
  for file in ("table.md", "table.csv", "plots/quality_bytes.png", "plots/quality_latency.png"):
    assert (tmp_path / file).stat().st_size > 0
  said = capsys.readouterr().out
  assert f"smallest within the limits: {second['chosen']}" in said

  # Validation decided, on what was saved; what was planned came close in bytes.
  planned = json.loads((tmp_path / "planned.json").read_text())
  for name, found in rows.items():
    assert planned[name]["bytes"] == pytest.approx(found["bytes"], rel=0.1)
    kept = json.loads((tmp_path / "trials" / name / "valid.json").read_text())
    assert found["drop"] == pytest.approx(1 - kept["value"] / second["teacher_valid"])

  # Nothing can be as small as that: said, and by how much; no best is left behind.
  third = compress.run(small_search(max_mb=0.001), tmp_path)
  assert third["chosen"] is None
  assert len(third["left"]) == 2
  assert not (tmp_path / "best").exists()
  with pytest.raises(stored.WorkdirError, match="holds a search"):
    compress.run(small_search(), tmp_path)
