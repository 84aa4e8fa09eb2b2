"""Named blocks of settings: what a name on the axis of segmenters or of generators stands for.

A block starts from the section of its kind (`segmenter` for `sam`, `unet`, `generator` for `pixel`,
`stable_diffusion`) and changes what it names: `sam_lora: {kind: sam, tuning: lora}`. The name of a
kind is a block without changes. Torch-free.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config.escaping import escaped
from experiments.config.names import check_known
from experiments.config.shapes import check_shape


def _kind_of(
    name: str, *, blocks: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, Any], where: str
) -> str:
    if name not in blocks:
        check_known([name], known=[*blocks, *kinds], key=f"sweep.{where.removesuffix('s')}")
        return name
    block = blocks[name]
    if not isinstance(block, Mapping):
        raise ValueError(
            f"{where}.{name}={block}: a block is a group of keys; write {where}.{name}.kind=..."
        )
    kind = block.get("kind", name if name in kinds else None)
    if isinstance(kind, list | Mapping):
        raise ValueError(f"{where}.{name}.kind={kind}: one kind is needed, as a word")
    if kind is None:
        raise ValueError(f"{where}.{name}: say its kind, one of {', '.join(kinds)}")
    check_known([kind], known=kinds, key=f"{where}.{name}.kind")
    if name in kinds and kind != name:
        raise ValueError(f"{where}.{name}: kind={kind}, but {name} is a kind; use another name")
    return kind


def block_settings(
    name: str,
    *,
    blocks: Mapping[str, Mapping[str, Any]],
    kinds: Mapping[str, Any],
    sections: Any,
    where: str,
) -> Any:
    """Settings of the block of a name: those of its kind's section, changed by what it says.

    `sections` has them as attributes, and `where` is the recipe's key of the blocks.

    Raises:
        ValueError: An unknown name or kind, or a key or value that the settings do not take.
    """
    row = kinds[_kind_of(name, blocks=blocks, kinds=kinds, where=where)]
    start = row.settings() if row.section is None else getattr(sections, row.section)
    changes = {key: value for key, value in blocks.get(name, {}).items() if key != "kind"}
    return _changed(start, changes, where=f"{where}.{name}") if changes else start


def _changed(start: Any, changes: Mapping[str, Any], *, where: str) -> Any:
    check_shape(dict(changes), type(start), key=where)
    merged = OmegaConf.structured(replace(start))
    for key, value in escaped(dict(changes)).items():
        try:
            # A list from a command line or a file stands for a tuple here as it does in a recipe.
            merged = OmegaConf.merge(merged, {key: value})
        except OmegaConfBaseException as error:
            why = " ".join(str(error).split("\n", 1)[0].split())
            raise ValueError(f"{where}.{error.full_key or key}: {why}") from error
    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{where}: " + " ".join(str(error).split("\n", 1)[0].split())) from error
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error
