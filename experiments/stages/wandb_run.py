"""One W&B run, as the stages and the summary of a sweep open it."""

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

from datamodules.storage import content_key
from experiments.config.schema import WandbConfig
from experiments.config.wandb_mode import is_logged_in, resolve_mode, server_answers, server_url
from experiments.store.layout import store_mark

INIT_TIMEOUT_S = 20
MAX_ID = 128
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_.-]+")


def clean_id(text: str) -> str:
    """A W&B id of a name: letters, digits, `_`, `.` and `-`, at most 128 of them; a longer one ends
    in a hash, for what tells runs apart stands at the end."""
    cleaned = _NOT_IN_IDS.sub("-", text)
    if len(cleaned) <= MAX_ID:
        return cleaned
    return f"{cleaned[: MAX_ID - 9]}-{content_key(text)[:8]}"


def sweep_run_id(root: Path, sweep: str, name: str) -> str:
    """A W&B id for what a sweep on the store below `root` logs, the same each time. It ends in the
    store's mark: others may run the same recipe into the same project.
    """
    return clean_id("-".join(word for word in (sweep[:60], name, store_mark(root)) if word))


def usable_mode(config: WandbConfig) -> str:
    """The mode of a run: offline, with a line that says so, without a key or an answer."""
    mode = resolve_mode(config)
    if mode != "online":
        return mode
    if not is_logged_in():
        lacks = f"no key for {server_url()}"
    elif not server_answers():
        lacks = f"{server_url()} does not answer"
    else:
        return mode
    print(f"W&B: {lacks}; this run is logged offline", flush=True)
    return "offline"


def run_config(recipe: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run: the resolved recipe, and the axes and ids that are its own.

    A section of the recipe that has an axis's name, such as `segmenter`, is `segmenter_settings`.
    """
    return {f"{key}_settings" if key in own else key: value for key, value in recipe.items()} | own


def open_run(
    folder: Path,
    *,
    config: WandbConfig,
    mode: str,
    run_id: str,
    name: str,
    group: str,
    job_type: str,
    tags: Sequence[str],
    content: Mapping[str, Any],
    continues: bool = True,
) -> wandb.Run:
    """Start a run whose files go to `folder/wandb`; where its id is known, continue that one, or
    write over it.

    `group` is the sweep, `content` the run's config. W&B raises exceptions of many kinds where it
    cannot start.
    """
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    # Artefacts are otherwise staged in the user's home.
    os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
    # W&B refuses its own modes in another case, before it looks at the argument.
    os.environ["WANDB_MODE"] = mode
    return wandb.init(
        dir=str(folder),
        project=config.project,
        entity=config.entity,
        id=run_id,
        name=name,
        group=group,
        job_type=job_type,
        tags=[tag[:64] for tag in tags],
        config=dict(content),
        resume="allow" if continues else None,
        mode=mode,
        settings=wandb.Settings(
            silent=True, console="off", init_timeout=INIT_TIMEOUT_S, x_disable_meta=True
        ),
    )


@contextmanager
def harmless(what: str) -> Iterator[None]:
    """Print what goes wrong with W&B instead of raising it."""
    try:
        yield
    except Exception as error:  # W&B raises many kinds, and none may stop a stage.
        print(f"W&B: {what}: {type(error).__name__}: {error}", flush=True)


def ends_within(timeout_s: float, work: Callable[[], None]) -> bool:
    """Do something that may wait for a server; whether it ended in time."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return not thread.is_alive()


def finish(*, exit_code: int, timeout_s: float = 30.0) -> bool:
    """End the process's W&B run, if there is one, as failed by any code but 0; whether it ended in
    time. Its own files are complete before."""
    return wandb.run is None or ends_within(timeout_s, lambda: wandb.finish(exit_code=exit_code))
