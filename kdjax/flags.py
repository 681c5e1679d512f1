"""Frozen dataclasses as absl flags, and back."""

import dataclasses
import json
import pathlib
import types
import typing
from typing import Any, Literal, TypeVar

from absl import flags

Config = TypeVar("Config")
_MISSING = dataclasses.MISSING


def option(default: Any, help: str, **checks: Any) -> Any:
  """A dataclass field with the help text of its flag.

  Args:
    default: the flag's default; immutable.
    help: one sentence; shown by `--help`.
    **checks: `lower` and `upper`, inclusive bounds of a number.
  """
  return dataclasses.field(default=default, metadata={"help": help, **checks})


def group(config_type: type[Config], prefix: str = "", **defaults: Any) -> Any:
  """A field that holds another dataclass, whose flags are named `<prefix><field>`.

  Args:
    config_type: a frozen dataclass whose fields are all options.
    prefix: such as `teacher_`, to have the same options twice.
    **defaults: of single fields, where they differ from the dataclass's own.
  """
  return dataclasses.field(
    default_factory=lambda: config_type(**defaults), metadata={"prefix": prefix}
  )


def _leaves(config_type: type, prefix: str = "", instance: Any = None):
  """(flag name, path of field names, field, type, default) of every option."""
  hints = typing.get_type_hints(config_type)
  instance = config_type() if instance is None else instance
  for field in dataclasses.fields(config_type):
    value = getattr(instance, field.name)
    if dataclasses.is_dataclass(hints[field.name]):
      inner = _leaves(hints[field.name], prefix + field.metadata.get("prefix", ""), value)
      for name, path, *rest in inner:
        yield (name, (field.name, *path), *rest)
    else:
      yield prefix + field.name, (field.name,), field, hints[field.name], value


def _without_none(hint: Any) -> Any:
  """The type of an optional option."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    rest = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if len(rest) == 1:
      return rest[0]
  return hint


def define(config_type: type, flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines one flag for every option of a dataclass, its groups' included.

  `bool`, `int`, `float` and `str` become flags of that type, `Literal` an enum, and
  `tuple[int, ...]`, `tuple[float, ...]` and `tuple[str, ...]` comma-separated lists; `| None` is
  allowed everywhere.

  Args:
    config_type: a frozen dataclass whose fields all have defaults.
    flag_values: where to; `absl.flags.FLAGS`. Call it only under `__main__`, so that two
      experiments can be imported into one process.

  Raises:
    TypeError: if a field has another type.
  """
  for name, _, field, hint, default in _leaves(config_type):
    text, hint = field.metadata["help"], _without_none(hint)
    bounds = {
      "lower_bound": field.metadata.get("lower"),
      "upper_bound": field.metadata.get("upper"),
    }
    if hint is bool:
      flags.DEFINE_bool(name, default, text, flag_values=flag_values)
    elif hint is int:
      flags.DEFINE_integer(name, default, text, **bounds, flag_values=flag_values)
    elif hint is float:
      flags.DEFINE_float(name, default, text, **bounds, flag_values=flag_values)
    elif hint is str:
      flags.DEFINE_string(name, default, text, flag_values=flag_values)
    elif typing.get_origin(hint) is Literal:
      values = list(typing.get_args(hint))
      flags.DEFINE_enum(name, default, values, text, flag_values=flag_values)
    elif typing.get_origin(hint) is tuple:
      listed = None if default is None else ",".join(map(str, default))
      flags.DEFINE_list(name, listed, text, flag_values=flag_values)
    else:
      raise TypeError(f"option {name} has type {hint}, which no flag can hold")


def parsed(config_type: type[Config], flag_values: flags.FlagValues = flags.FLAGS) -> Config:
  """The dataclass filled with the values of its parsed flags.

  Raises:
    absl.flags.Error: naming the flag, if an element of a list has the wrong type.
  """
  values = {}
  for name, path, _, hint, _ in _leaves(config_type):
    value, hint = flag_values[name].value, _without_none(hint)
    if value is not None and typing.get_origin(hint) is tuple:
      element = typing.get_args(hint)[0]
      try:
        value = tuple(element(part) for part in value)
      except ValueError as error:
        raise flags.Error(
          f"--{name}={','.join(value)}: every element must be {element.__name__}"
        ) from error
    values[path] = value
  return _build(config_type, values)


def _build(config_type: type, values: dict[tuple[str, ...], Any]) -> Any:
  hints = typing.get_type_hints(config_type)
  arguments = {}
  for field in dataclasses.fields(config_type):
    if dataclasses.is_dataclass(hints[field.name]):
      inner = {path[1:]: v for path, v in values.items() if path[0] == field.name}
      arguments[field.name] = _build(hints[field.name], inner)
    else:
      arguments[field.name] = values[(field.name,)]
  return config_type(**arguments)


def flat(config: Any) -> dict[str, Any]:
  """Every option of a config by the name of its flag."""
  return {name: value for name, _, _, _, value in _leaves(type(config), instance=config)}


def save(config: Any, path: pathlib.Path) -> None:
  """Writes a config as JSON, nested as its dataclass is."""
  path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")


def load(config_type: type[Config], path: pathlib.Path) -> Config:
  """Reads back what `save` wrote.

  Raises:
    ValueError: naming the file, if it is missing, no JSON, or has other fields.
  """
  try:
    return from_dict(config_type, json.loads(path.read_text(encoding="utf-8")))
  except (OSError, json.JSONDecodeError, TypeError) as error:
    raise ValueError(f"cannot read the configuration {path}: {error}") from error


def from_dict(config_type: type[Config], values: dict[str, Any]) -> Config:
  """A dataclass from the nested dict that `dataclasses.asdict` gives, lists being tuples again."""
  hints = typing.get_type_hints(config_type)
  arguments = {}
  for name, value in values.items():
    if name in hints and dataclasses.is_dataclass(hints[name]):
      value = from_dict(typing.cast(type, hints[name]), value)
    elif isinstance(value, list):
      value = tuple(value)
    arguments[name] = value
  return config_type(**arguments)
