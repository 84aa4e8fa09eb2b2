"""The command `demo`. Torch-free."""

import os
from pathlib import Path

from datamodules.errors import InputError
from experiments.commands.arguments import Overrides, stdout_console


def demo(overrides: Overrides = None) -> None:
    """Run the whole job at a small size, on phantoms or on HC18 (HC18_ROOT or data.root=)."""
    from experiments.config.recipe import load_config

    config = load_config("demo", overrides or [])
    # After the config is known to be good: decoding and drawing libraries take half a second.
    from experiments.commands.run import run_sweep

    if config.data.root is None and not os.environ.get("HC18_ROOT"):
        config.data.root = str(_phantoms(Path(config.store.root)))
        config.name = f"{config.name}-phantom"
    run_sweep(config, stdout_console(), retry_failed=True)


def _phantoms(store_root: Path) -> Path:
    from datamodules.phantom import write_phantom

    root = store_root / "phantom-data"
    if not root.exists():
        with stdout_console().status("no HC18_ROOT: drawing phantoms"):
            write_phantom(root, n_exams=72, seed=0)
    if not root.is_dir():
        raise InputError(f"{root}: is not a folder; remove it and try again")
    return root
