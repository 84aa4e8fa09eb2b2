"""From a recipe and `key=value` words to a checked config. Torch-free, so that it takes no time."""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules.errors import InputError
from experiments.config.escaping import escaped
from experiments.config.extensions import import_extensions
from experiments.config.paths import RECIPES
from experiments.config.schema import ExperimentConfig
from experiments.config.shapes import check_shape
from experiments.config.stored import check_seal, find_stored, rebase, root_of

PAPER_EVALUATION = {"prompts": ["jittered_box"], "jitter_draws": 5, "output": "mask"}
"""Keys of `evaluation` under `compat: paper`."""


def find_recipe(recipe: str, *, root: Path = Path("runs")) -> Path:
    """Path of a recipe: given by path, by the name of a shipped one, or by the folder or the name
    below `root` of a sweep, which keeps its own; InputError for none of them.
    """
    if not recipe:
        raise InputError("recipe: an empty name; give a recipe's file or name, or a sweep's name")
    if Path(recipe).suffix == ".csv":
        folder = Path(recipe).parent
        raise InputError(f"{recipe}: no recipe but rows; give the sweep's folder {folder}")
    for path in (Path(recipe), RECIPES / recipe, RECIPES / f"{recipe}.yaml"):
        if path.is_file():
            return path
    stored = find_stored(recipe, root=root)
    if stored is not None:
        return stored
    if Path(recipe).is_dir():
        raise InputError(f"recipe {recipe}: a folder, and not a sweep's; give a recipe's file")
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    sweeps = sorted(path.parent.name for path in root.glob("*/plan.json"))
    known = f"; sweeps in {root}: {', '.join(sweeps)}" if sweeps else ""
    raise InputError(f"recipe {recipe}: no such file; shipped recipes: {', '.join(names)}{known}")


def load_config(recipe: str | None, overrides: list[str]) -> ExperimentConfig:
    """Merge the schema, a recipe and `key=value` overrides into a checked config.

    An override is read by the type of its key: a text (path, name) as it is typed, all else as
    YAML. The relative paths of a recipe that a sweep keeps lead where they led when it ran.

    Raises:
        InputError: For an unknown key, a value of the wrong kind or out of range, or broken YAML.
    """
    merged: dict[str, Any] = {}
    if recipe is not None:
        path = find_recipe(recipe, root=root_of(overrides))
        try:
            text = path.read_text()
            check_seal(text, path)
            loaded = yaml.load(text, Loader=_RecipeYaml)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{path}: not valid YAML ({_one_line(error)}); correct it") from error
        if not isinstance(loaded, dict):
            raise InputError(f"{path}: a recipe is a mapping of keys to values; correct it")
        merged = loaded
        check_shape(merged, ExperimentConfig, where=f"{path}: ")
        ran_in = rebase(merged, path)
        import_extensions(merged.get("extensions", []), where=str(path), folder=ran_in)
    if any(override.replace(" ", "") == "compat=paper" for override in overrides):
        # Asked for on the command line, it stands above what the recipe says.
        for key in PAPER_EVALUATION:
            merged.get("evaluation", {}).pop(key, None)
    for override in overrides:
        _set_override(merged, override)
    apply_compat(merged)
    import_extensions(merged.get("extensions", []))
    read_old_condition(merged)
    if merged.get("sweep", {}).get("real_count") and "real_fraction" not in merged["sweep"]:
        merged["sweep"]["real_fraction"] = []
    try:
        typed = OmegaConf.merge(OmegaConf.structured(ExperimentConfig), OmegaConf.create(merged))
    except OmegaConfBaseException as error:
        raise InputError(_explain(error)) from error
    # Section by section, so that the section's own message gets the section's name in front.
    for name, section in _sections(typed):
        _checked(section, name)
    return _checked(typed)


def _checked(typed: Any, section: str = "") -> Any:
    """The dataclass of typed settings; InputError for what it refuses."""
    try:
        return OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise InputError(_explain(error)) from error
    except ValueError as error:
        message = _one_line(error)
        raise InputError(
            message if message.startswith(section) else f"{section}.{message}"
        ) from error


def _sections(typed: Any) -> Iterator[tuple[str, Any]]:
    """Groups of keys that a dataclass checks, by name; of named groups each one."""
    for field in fields(ExperimentConfig):
        if is_dataclass(field.type):
            yield field.name, typed[field.name]
        elif get_origin(field.type) is dict and is_dataclass(get_args(field.type)[1]):
            for name in typed[field.name]:
                yield f"{field.name}.{name}", typed[field.name][name]


def apply_compat(merged: dict[str, Any]) -> None:
    """Write the paper's evaluation into merged settings with `compat: paper`, in place.

    Raises:
        InputError: If a setting of its own says otherwise.
    """
    if merged.get("compat") != "paper":
        return
    evaluation = merged.setdefault("evaluation", {})
    for key, value in PAPER_EVALUATION.items():
        if evaluation.setdefault(key, value) != value:
            raise InputError(
                f"evaluation.{key}={evaluation[key]}: compat=paper scores with {value}; remove one "
                "of the two"
            )
    primary = merged.setdefault("statistics", {}).setdefault("primary", {})
    primary.setdefault("prompt", "jittered_box")


def read_old_condition(merged: dict[str, Any]) -> None:
    """Read the condition `unet` of earlier recipes as the segmenter that it was, in place.

    Raises:
        InputError: If the primary contrast asks for it: contrasts are within one segmenter.
    """
    sweep = merged.get("sweep", {})
    primary = merged.get("statistics", {}).get("primary", {})
    if "unet" in (primary.get("condition"), primary.get("baseline")):
        raise InputError(
            "statistics.primary: unet is a segmenter now, and contrasts are within one; name a "
            "condition, and statistics.primary.segmenter=unet"
        )
    if "unet" not in sweep.get("condition", []):
        return
    others = [name for name in sweep["condition"] if name != "unet"]
    if others:
        sweep["condition"] = others
        sweep["also"] = [*sweep.get("also", []), {"segmenter": "unet", "condition": "real"}]
    else:
        sweep["condition"], sweep["segmenter"] = ["real"], ["unet"]
    print(
        "note: sweep.condition: unet is read as segmenter unet under the condition real; "
        "unet.light_augmentation=true gives it the augmentation that it had",
        file=sys.stderr,
    )


_TIMES = re.compile(r"[-+]?\d+(:[0-5]?\d)+(\.\d*)?$")
"""To YAML 1.1 they are numbers of base 60: `1:30:00` is 5400, of whatever unit."""


class _RecipeYaml(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, and `on`, `off` and `1:30` are words."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":bool")]
        if first in "yYnNoO"
        else [("tag:yaml.org,2002:str", _TIMES), *found]
        if first in "+-0123456789"
        else found
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: {key} is listed twice; rename or remove one")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _set_override(merged: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r}: expected key=value, as in segmenter.steps=80")
    if text.strip() == "":
        raise InputError(f"{override}: no value after '='; give one, or null where none may be")
    *parents, leaf = key.split(".")
    try:
        value = escaped(_read_value(text, _kind_of((*parents, leaf))))
    except yaml.YAMLError as error:
        raise InputError(
            f"{override}: the value is not valid YAML; a list is written [a,b]"
        ) from error
    asked: Any = value
    for part in (leaf, *reversed(parents)):
        asked = {part: asked}
    check_shape(asked, ExperimentConfig)
    node = merged
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"{key}: {parent} is not a group of keys in the recipe")
    node[leaf] = value


def _kind_of(names: Sequence[str]) -> Any:
    """Type of the key of these names; Any where the schema does not say."""
    kind: Any = ExperimentConfig
    for name in names:
        if is_dataclass(kind):
            kind = next((field.type for field in fields(kind) if field.name == name), Any)
        else:
            kind = get_args(kind)[1] if get_origin(kind) is dict else Any
    return kind


def _read_value(text: str, kind: Any) -> Any:
    """A value from the command line as a key of a type takes it; YAMLError where it is no YAML.

    Quotes around a whole text are YAML's, and `null` is none where the key may have none.
    """
    is_quoted = text[0] in "'\"" and text[-1] == text[0] and len(text) > 1
    if kind is str or set(get_args(kind)) == {str, NoneType}:
        if is_quoted:
            return yaml.load(text, Loader=yaml.BaseLoader)
        return None if text == "null" and kind is not str else text
    if get_origin(kind) is list and get_args(kind) == (str,):
        # To this loader every single value is a text.
        return yaml.load(text, Loader=yaml.BaseLoader)
    value = yaml.load(text, Loader=_RecipeYaml)
    # Of a block's keys the type is not known: a text at least is not cut at a ` #`.
    return text if isinstance(value, str) and kind is Any and not is_quoted else value


def _explain(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None)
    message = str(error).split("\n", 1)[0]
    return f"{key}: {message}" if key and key not in message else _one_line(message)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
