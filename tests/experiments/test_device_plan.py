"""The planner by flags."""

import json

import pytest

from experiments import plan


def test_a_plan_is_written_whole(tmp_path, capsys):
  result = plan.run(plan.Config(items=1e9, dim=128, devices=256), tmp_path)
  assert [row["device"] for row in result["rows"]] == ["TPU v5e", "TPU v6e", "H100 SXM", "H200 SXM"]
  assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
  assert (tmp_path / "table.md").read_text().strip() in capsys.readouterr().out
  assert (tmp_path / "plots" / "memory.png").stat().st_size > 5000
  for row in result["rows"]:
    data, fsdp, model = row["split"]
    assert data * fsdp * model == 256
    # A table, two moments and a gradient of a billion items cannot be less than this.
    assert row["memory"] >= 4 * 4 * 1e9 * 128 / 256
    assert row["fits"]


def test_what_fits_nowhere_says_from_how_many_devices(tmp_path):
  result = plan.run(plan.Config(items=1e9, dim=128, devices=8), tmp_path)
  for row in result["rows"]:
    assert not row["fits"]
    assert row["needed"] > 8
    more = plan.Config(items=1e9, dim=128, devices=row["needed"])
    found = {r["device"]: r["fits"] for r in plan.run(more, tmp_path)["rows"]}
    assert found[row["device"]]


def test_a_mesh_by_flags(tmp_path):
  config = plan.Config(devices=8, data_devices=2, model_devices=4, cached_top_k=32)
  assert all(row["split"] == [2, 1, 4] for row in plan.run(config, tmp_path)["rows"])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"devices": 8, "data_devices": 2}, "is 2, not --devices=8"),
    ({"devices": 8, "data_devices": 8, "batch_size": 12}, "--batch_size=12 does not divide"),
    ({"teacher_dim": 64, "cached_top_k": 5}, "not both"),
  ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    plan.run(plan.Config(**options), tmp_path)
