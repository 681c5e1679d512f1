import dataclasses
from typing import Literal

import pytest
from absl import flags as absl_flags

from experiments import compress, distill, evaluate, quantize, train
from kdjax import flags


@dataclasses.dataclass(frozen=True)
class Inner:
  width: int = flags.option(8, "Width of it.", lower=1)
  rate: float | None = flags.option(None, "Rate of it.")


@dataclasses.dataclass(frozen=True)
class Config:
  name: str = flags.option("a", "A name.")
  fast: bool = flags.option(True, "Whether it is fast.")
  mode: Literal["one", "two"] = flags.option("one", "Which mode.")
  seeds: tuple[int, ...] = flags.option((0,), "Seeds.")
  big: Inner = flags.group(Inner, prefix="big_", width=64)
  small: Inner = flags.group(Inner, prefix="small_")


def parse(*argv, config_type=Config):
  values = absl_flags.FlagValues()
  flags.define(config_type, values)
  values(["program", *argv])
  return flags.parsed(config_type, values)


def test_no_flags_give_the_defaults():
  assert parse() == Config()
  assert (parse().big.width, parse().small.width) == (64, 8)


def test_every_kind_of_flag():
  config = parse(
    "--name=b", "--nofast", "--mode=two", "--seeds=1,2,3", "--big_width=5", "--small_rate=.5"
  )
  assert config == Config("b", False, "two", (1, 2, 3), Inner(5, None), Inner(8, 0.5))


@pytest.mark.parametrize(
  ("argument", "flag"), [("--mode=three", "mode"), ("--big_width=0", "big_width")]
)
def test_bad_values_name_the_flag(argument, flag):
  with pytest.raises(absl_flags.Error, match=flag):
    parse(argument)


def test_a_bad_element_names_the_flag():
  with pytest.raises(absl_flags.Error, match="--seeds=1,x: every element must be int"):
    parse("--seeds=1,x")


def test_a_type_that_no_flag_holds_is_refused():
  bad = dataclasses.make_dataclass("Bad", [("x", dict, flags.option((), "No."))], frozen=True)
  with pytest.raises(TypeError, match="option x"):
    flags.define(bad, absl_flags.FlagValues())


def test_flat_names_every_option_as_its_flag():
  flat = flags.flat(parse("--small_width=3"))
  assert flat["small_width"] == 3
  assert flat["big_width"] == 64
  assert set(flat) == {
    "name",
    "fast",
    "mode",
    "seeds",
    "big_width",
    "big_rate",
    "small_width",
    "small_rate",
  }


def test_json_round_trip(tmp_path):
  config = parse("--seeds=4,5", "--big_rate=0.25")
  flags.save(config, tmp_path / "config.json")
  assert flags.load(Config, tmp_path / "config.json") == config


@pytest.mark.parametrize("text", ["", "[", '{"nome": 1}'])
def test_a_damaged_config_is_named(tmp_path, text):
  path = tmp_path / "config.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=r"config\.json"):
    flags.load(Config, path)


@pytest.mark.parametrize("job", [train, distill, quantize, evaluate, compress])
def test_every_binary_s_options_become_flags_with_help(job):
  values = absl_flags.FlagValues()
  flags.define(job.Config, values)
  for name in flags.flat(job.Config()):
    assert len(values[name].help) > 10
  values(["program"])
  assert flags.parsed(job.Config, values) == job.Config()
