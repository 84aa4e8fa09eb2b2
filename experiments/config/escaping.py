"""Text that OmegaConf is to take as it is. Torch-free."""

import re
from typing import Any


def escaped(value: Any) -> Any:
    """The same value with `${` escaped in every text, which OmegaConf reads as a reference."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(item) for item in value]
    if isinstance(value, str):
        # A backslash before it would escape the escape.
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + "\\${", value)
    return value
