"""`jobs.json` of a sweep: which stages went to SLURM in which jobs. Torch-free.

A batch is written down before it is sent and again with its id, so that a sweep that was killed
at any moment neither sends a stage twice nor loses sight of a job.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError
from datamodules.storage import write_json

LEDGER_NAME = "jobs.json"


@dataclass(kw_only=True)
class Batch:
    """Jobs that are sent by one call of sbatch."""

    name: str
    """Their job name, which no other batch has."""
    chains: list[list[str]]
    """Stages `stage/id` of each job, one after the other."""
    job_id: str | None = None
    """SLURM's id of the array, or of the one job; None while it is being sent."""

    def id_of(self, number: int) -> str:
        """SLURM's id of one of its jobs, as squeue shows it; an array of one job is none."""
        return f"{self.job_id}_{number}" if len(self.chains) > 1 else str(self.job_id)


def read_ledger(folder: Path) -> list[Batch]:
    """The batches that may be in the queue; none where nothing was sent.

    Raises:
        InputError: If the file is damaged.
    """
    path = folder / LEDGER_NAME
    try:
        content = json.loads(path.read_text())
        return [
            Batch(name=entry["name"], chains=entry["stages"], job_id=entry["job_id"])
            for entry in content["batches"]
        ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: damaged ({error}); look into squeue for jobs of this sweep, then remove it"
        ) from error


def write_ledger(folder: Path, batches: Sequence[Batch]) -> None:
    """Write what may be in the queue; the caller holds the folder."""
    entries = [
        {"name": batch.name, "job_id": batch.job_id, "stages": batch.chains} for batch in batches
    ]
    write_json(folder / LEDGER_NAME, {"batches": entries})
