"""Modules of a user's own that add rows to the tables. Torch-free by itself."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from datamodules.errors import InputError


def import_extensions(
    names: Sequence[str], *, where: str = "the command line", folder: Path | None = None
) -> None:
    """Import modules, from a folder (default: the working one) too; InputError if one fails."""
    # Console scripts do not look here by themselves.
    place = str(folder or Path.cwd())
    if names and (folder or "" not in sys.path) and place not in sys.path:
        sys.path.append(place)
    for name in names:
        try:
            import_module(name)
        except Exception as error:  # A user's module may raise anything.
            reason = " ".join(str(error).split())
            raise InputError(
                f"{where}: extensions: {name} cannot be imported ({type(error).__name__}: "
                f"{reason}); correct it, or put its folder on PYTHONPATH"
            ) from error
