"""The manifest of a finished run, read before anything heavy is imported. Torch-free."""

import json
from pathlib import Path
from typing import Any

from datamodules.errors import InputError


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """Read manifest.json of a finished run.

    Args:
        run_dir: `runs/store/STAGE/ID`, or a copy of it.

    Raises:
        InputError: It is no run's directory, the run has not finished, or the file is damaged.
    """
    if run_dir.is_file():
        raise InputError(f"{run_dir}: a file; give the run's directory, {run_dir.parent}")
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such directory; give a run's, such as runs/store/fit/ID")
    path = run_dir / "manifest.json"
    if not path.is_file():
        raise InputError(
            f"{run_dir}: manifest.json is missing, so this is no run; give a directory such as "
            "runs/store/fit/ID"
        )
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: cannot be read ({error}); make the run again") from error
    if not isinstance(manifest, dict) or "stage" not in manifest:
        raise InputError(f"{path}: names no stage, so this is no run of this program")
    return manifest
