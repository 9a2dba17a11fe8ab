"""Reads a configuration: a YAML file and `section.key=value` settings, all mistakes named at once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from talkforge.schemas import yaml_text
from talkforge.schemas.errors import CommandError
from talkforge.schemas.presets import ConfigFile
from talkforge.schemas.yaml_text import KeyPath, YamlError

M = TypeVar("M", bound=BaseModel)

_EXPECTED = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "string": "a text (in quotes, where it looks like something else)",
    "tuple": "a list",
    "list": "a list",
    "model": "a section of `key: value`",
    "finite": "a finite number",
    "literal": "{expected}",
    "greater": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_long": "at most {max_length} values",
    "too_short": "at least {min_length} values",
}
"""What a value should have been, by the kind of pydantic's error; the longest beginning that fits counts."""


def read(
    model: type[M],
    file: ConfigFile | None,
    settings: Iterable[str] = (),
    full_key: Callable[[list[str]], list[str]] = lambda keys: keys,
) -> M:
    """A configuration from a file with settings laid over it.

    Args:
        model: what to read.
        file: None: the defaults.
        settings: `section.key=value`, where the value is YAML.
        full_key: completes the key of a setting.

    Raises:
        CommandError: the file cannot be read, or keys or values do not fit: one line that names every
            mistake with its line and key.
    """
    data, lines = _read(file)
    places = {key: f"line {line}, " for key, line in lines.items()}
    return overlay(model, data, settings, str(file or "configuration"), full_key, places)


def overlay(
    model: type[M],
    data: dict[str, Any],
    settings: Iterable[str],
    name: str = "configuration",
    full_key: Callable[[list[str]], list[str]] = lambda keys: keys,
    places: dict[KeyPath, str] | None = None,
) -> M:
    """`data` with `section.key=value` settings laid over it, checked.

    Args:
        model: what to read.
        data: sections and values; stays as it is.
        settings: `section.key=value`, where the value is YAML.
        name: what the error line calls the data.
        full_key: completes the key of a setting.
        places: where each key of `data` was read, as the error line should say it.

    Raises:
        CommandError: keys or values do not fit; one line that names every mistake.
    """
    data, places = _copy(data), dict(places or {})
    _drop_empty_sections(model, data)
    for setting in settings:
        keys, value = _split(setting)
        keys = full_key(keys)
        _put(data, keys, _copy(value), setting)
        places[tuple(keys)] = "--set "
    try:
        return model.model_validate(data, strict=True)  # strict: a text is no number, true is not 1
    except ValidationError as error:
        raise CommandError(f"{name}: {'; '.join(_mistakes(model, error, places))}") from None


def _read(file: ConfigFile | None) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    if file is None:
        return {}, {}
    try:
        data, lines = yaml_text.load(file.text())
    except YamlError as error:
        raise CommandError(f"{file}: {error}") from None
    if data is not None and not isinstance(data, dict):
        raise CommandError(
            f"{file}: expected sections, found a {'list' if isinstance(data, list) else 'value'}"
        )
    return data or {}, lines


def _copy(data: Any) -> Any:
    """The data anew as strict validation wants it: lists are tuples, and `1e3` is a whole number."""
    if isinstance(data, dict):
        return {key: _copy(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return tuple(_copy(value) for value in data)
    if isinstance(data, float) and data.is_integer() and abs(data) < 2**53:
        return int(data)
    return data


def _drop_empty_sections(model: type[BaseModel], data: dict[str, Any]) -> None:
    """Sections without a key, such as one whose keys are all comments, keep their defaults."""
    for name, field in model.model_fields.items():
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel) and name in data:
            if data[name] is None:
                del data[name]
            elif isinstance(data[name], dict):
                _drop_empty_sections(below, data[name])


def _split(setting: str) -> tuple[list[str], Any]:
    dotted, equals, text = setting.partition("=")
    keys = dotted.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise CommandError(f"--set {setting}: expected section.key=value")
    try:
        return keys, yaml_text.load(text)[0]
    except YamlError as error:
        raise CommandError(f"--set {setting}: the value is not YAML ({error})") from None


def _put(data: dict[str, Any], keys: list[str], value: Any, setting: str) -> None:
    for key in keys[:-1]:
        if data.get(key) is None:
            data[key] = {}
        if not isinstance(data[key], dict):
            raise CommandError(f"--set {setting}: {key} is not a section")
        data = data[key]
    data[keys[-1]] = value


def _mistakes(model: type[BaseModel], error: ValidationError, places: dict[KeyPath, str]) -> Iterator[str]:
    """Each mistake as `line 3, section.key: what is wrong`, in the order of the fields."""
    for details in error.errors(include_url=False):
        key = details["loc"]
        near = next((key[:end] for end in range(len(key), 0, -1) if key[:end] in places), ())
        if not near and details["type"] == "extra_forbidden":  # a section, whose keys have a place
            near = next((place for place in places if place[: len(key)] == key), ())
        where = f"{places.get(near, '')}{'.'.join(map(str, key))}"
        yield f"{where}: {_what(model, details)}" if where else _what(model, details)


def _what(model: type[BaseModel], details: ErrorDetails) -> str:
    kind, found, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(model, details["loc"])
    if kind == "missing":
        return "expected a value, found nothing"
    if kind == "value_error":
        return str(context["error"])
    for beginning in sorted(_EXPECTED, key=len, reverse=True):
        if kind.startswith(beginning):
            numbers = {key: f"{v:g}" if isinstance(v, float) else v for key, v in context.items()}
            expected = _EXPECTED[beginning].format(**numbers)
            return f"expected {expected}, found {json.dumps(found, ensure_ascii=False)}"
    return f"{details['msg']}, found {json.dumps(found, ensure_ascii=False)}"


def _unknown(model: type[BaseModel], key: KeyPath) -> str:
    name, section = str(key[-1]), _section(model, key[:-1])
    close = difflib.get_close_matches(name, section.model_fields, n=1, cutoff=0.55)
    if close:
        return f"unknown key (did you mean {close[0]}?)"
    elsewhere = [path for path in key_paths(model) if path.rpartition(".")[2] == name]
    if elsewhere:
        return f"unknown key (did you mean {elsewhere[0]}?)"
    return f"unknown key (known here: {', '.join(section.model_fields)})"


def _section(model: type[BaseModel], path: KeyPath) -> type[BaseModel]:
    for key in path:
        below = model.model_fields[str(key)].annotation
        assert isinstance(below, type) and issubclass(below, BaseModel)
        model = below
    return model


def key_paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of every section and value of a configuration."""
    paths = []
    for name, field in model.model_fields.items():
        paths.append(prefix + name)
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            paths += key_paths(below, f"{prefix}{name}.")
    return paths
