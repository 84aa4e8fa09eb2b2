"""Whether the values of a recipe have the shape that its schema asks for. Torch-free."""

import difflib
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from datamodules.errors import InputError


def check_shape(value: Any, kind: Any, *, key: str = "", where: str = "") -> None:
    """Refuse a value that is of another shape than the type of its key, and unknown keys in it.

    OmegaConf would refuse most of them too, in words that name no key.

    Args:
        value: As YAML has it: dictionaries, lists and single values.
        kind: Type of the key, a dataclass for a group of keys; Any takes everything.
        key: Its name in full, empty for a whole recipe.
        where: What stands before it in a message.

    Raises:
        InputError: With one line that names the key.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) or origin is dict:
        if not isinstance(value, dict):
            hint = f"set one of its keys, as {key}.KEY=..."
            raise InputError(f"{where}{key}={value}: {key} is a group of keys; {hint}")
        types = dict.fromkeys(value, *arguments[1:])
        if is_dataclass(kind):
            types = {field.name: field.type for field in fields(kind)}
        before = f"{key}." if key else ""
        for name, item in value.items():
            if not isinstance(name, str):
                written = "null" if name is None else str(name).lower()
                hint = "a name is a text; write it in quotes, or choose another"
                raise InputError(f"{where}{before}{written}: {hint}")
            if name not in types:
                close = difflib.get_close_matches(name, types, n=1)
                known = ", ".join(before + each for each in close or types)
                hint = f"did you mean {known}?" if close else f"known keys: {known}"
                raise InputError(f"{where}{before}{name}: unknown key; {hint}")
            check_shape(item, types[name], key=before + name, where=where)
    elif isinstance(value, dict) and origin not in (list, tuple) and not _takes_keys(kind):
        raise InputError(f"{where}{key}: is a single value; write {key}=...")
    elif origin in (list, tuple):
        if not isinstance(value, list):
            written = "[{key: value}]" if is_dataclass(arguments[0]) else "[a,b]"
            written = written if isinstance(value, dict) else f"[{value}]"
            raise InputError(f"{where}{key}={value}: a list is needed; write {written}")
        for number, item in enumerate(value):
            if is_dataclass(arguments[0]):
                check_shape(item, arguments[0], key=f"{key}[{number}]", where=where)
            elif isinstance(item, list | dict) and arguments[0] in (str, int, float):
                raise InputError(f"{where}{key}={value}: {item} is not a single value; write [a,b]")
        count = len(value) if Ellipsis in arguments else len(arguments)
        is_whole = arguments[0] is int
        if origin is tuple and is_whole and [type(item) for item in value] != [int] * count:
            raise InputError(f"{where}{key}={value}: {count} whole numbers are needed")
    elif value == "???":
        # OmegaConf's word for a missing value: the schema's default would stand in its place.
        raise InputError(f"{where}{key}=???: no value; give one, or leave the key out")
    elif kind is bool and not isinstance(value, bool | str):
        # Of texts OmegaConf takes `on`, `no` and the like alone; any number is true to it.
        raise InputError(f"{where}{key}={value}: use true or false")


def _takes_keys(kind: Any) -> bool:
    """Whether a group of keys is a value of a type, or of one of its alternatives."""
    alternatives = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return any(
        each in (Any, dict) or is_dataclass(each) or get_origin(each) is dict
        for each in alternatives
    )
