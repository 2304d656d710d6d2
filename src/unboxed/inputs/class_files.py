"""Names of classes from a file: one per line, synset lines, numbered lines, or JSON as ImageNet's class index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..validation import expand_home, missing_path_text

NUMBERED_LINE_PATTERN = re.compile(r"(\d+)\s*[\s:,;]\s*(.+)")
CLASS_FILE_FORMS_TEXT = "wanted one name per line, or JSON: a list of names, {number: name} or {name: number}"


def resolve_class_names(classes: Any) -> Any:
    """Class names, read from a file where they are the path of one. Raises InputError."""
    if not isinstance(classes, (str, os.PathLike)):
        return classes
    path = expand_home(classes)
    if not os.path.isfile(path):
        wanted = "wanted the names of the outputs, in their order, or the path of a file of them"
        raise InputError(f"classes must be names, and {missing_path_text(classes)}; {wanted}")
    return read_class_names(path)


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names in a file, in the order of the outputs. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        contents = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} holds no class names: {error}; {CLASS_FILE_FORMS_TEXT}") from error
    names = (
        _class_names_from_mapping(contents, path)
        if isinstance(contents, Mapping)
        else _class_names_from_lines(contents, path)
    )
    if not names:
        raise InputError(f"{path} holds no class names; {CLASS_FILE_FORMS_TEXT}")
    return names


def _class_names_from_lines(lines: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(lines, Sequence) or isinstance(lines, str):
        raise InputError(f"{path} holds no class names; {CLASS_FILE_FORMS_TEXT}")
    names = [_class_name_from_value(line) for line in lines]
    names = [name for name in names if name]
    numbered = [NUMBERED_LINE_PATTERN.fullmatch(name) for name in names]
    pairs = {int(match[1]): match[2].strip(" '\",") for match in numbered if match}
    if len(pairs) == len(names) and sorted(pairs) == list(range(len(names))):
        return tuple(pairs[k] for k in range(len(names)))
    return tuple(names)


def _class_names_from_mapping(contents: Mapping[Any, Any], path: Path) -> tuple[str, ...]:
    """Of {number: name}, where a name may be [WordNet id, name] as in imagenet_class_index.json, or {name: number}."""
    if all(isinstance(number, int) for number in contents.values()):
        contents = {number: name for name, number in contents.items()}
    try:
        names = {int(number): _class_name_from_value(name) for number, name in contents.items()}
    except ValueError:
        raise InputError(f"{path} holds no class numbers; {CLASS_FILE_FORMS_TEXT}") from None
    if sorted(names) != list(range(len(names))):
        raise InputError(f"{path} has {len(names)} classes, but their numbers are not 0 to {len(names) - 1}")
    return tuple(names[k] for k in range(len(names)))


def _class_name_from_value(value: Any) -> str:
    return " ".join(map(str, value)).strip() if isinstance(value, (list, tuple)) else str(value).strip()
