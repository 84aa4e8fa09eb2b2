"""The commands below `sonosweep weights`, and what a sweep fetches when it starts. Torch-free."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from datamodules.allowed import one_of
from datamodules.errors import InputError
from experiments.commands.arguments import (
    AsJson,
    download_bars,
    print_json,
    say,
    stdout_console,
)
from lightning_modules.errors import MissingWeightsError, WeightsError
from lightning_modules.weights_table import (
    HUB,
    WEIGHTS,
    checkpoints_folder,
    file_digest,
    find_cached,
    is_offline,
    sha256_file,
    verify_cached,
)

if TYPE_CHECKING:
    from datamodules.download import RetryPolicy

weights_app = typer.Typer(no_args_is_help=True, help="Published weights by name.")
Name = Annotated[str, typer.Argument(help="As `sonosweep weights list` names it.")]


@weights_app.command("list")
def weights_list(as_json: AsJson = False) -> None:
    """List the weights that can be had by name, and whether they are here."""
    from lightning_modules.generators.stable_diffusion.weights import find_in_hub_cache

    found = [
        (name, row.file, row.size_bytes, row.licence, _path_or_none(name))
        for name, row in WEIGHTS.items()
    ]
    for name, model in HUB.items():
        path = find_in_hub_cache(model.repo, revision=model.revision)
        found.append((name, f"{model.repo}@{model.revision}", None, model.licence, path))
    if as_json:
        keys = ("name", "what", "size_bytes", "licence", "path")
        lines = [dict(zip(keys, line, strict=True)) for line in found]
        print_json([line | {"path": line["path"] and str(line["path"])} for line in lines])
        return
    absent = "missing (HF_HUB_OFFLINE is set)" if is_offline() else "to fetch"
    for name, what, size_bytes, licence, path in found:
        size = "" if size_bytes is None else f", {size_bytes / 2**20:.0f} MiB"
        say(stdout_console(), f"{name}: {path or absent}\n    {what}{size}; {licence}")


@weights_app.command("fetch")
def weights_fetch(name: Name) -> None:
    """Fetch weights into the cache that projects share, checked; continues where it stopped.

    A name OWNER/MODEL or OWNER/MODEL@REVISION is a base model of Stable Diffusion on the hub.
    """
    console = stdout_console()
    say(console, f"{name}: {fetch(name, console)}")


@weights_app.command("path")
def weights_path(name: Name) -> None:
    """Print where weights lie, after a look at their checksum; never touches the network."""
    from lightning_modules.generators.stable_diffusion.weights import find_in_hub_cache

    model, revision = _on_hub(name)
    path = verify_cached(name) if model is None else find_in_hub_cache(model, revision=revision)
    if path is None:
        raise WeightsError(f"{name}: not in the hub's cache; `sonosweep weights fetch {name}`")
    print(path)


def fetch(name: str, console: Console) -> Path:
    """Bring weights of a name as `weights fetch` takes it into their cache, where they are not
    there; see `fetch_weights` and `fetch_from_hub`."""
    model, revision = _on_hub(name)
    if model is None:
        return fetch_weights(name, console)
    return fetch_from_hub(model, revision=revision, console=console)


def fetch_weights(name: str, console: Console, *, retry: "RetryPolicy | None" = None) -> Path:
    """Bring a file of the table into the cache, where it is not there yet.

    Raises:
        MissingWeightsError: It is not there, and HF_HUB_OFFLINE forbids the network.
        WeightsError: Another file has its name.
        InputError: The server cannot be reached or refuses, the disk is too small, another fetch
            is at work, or what came is not the published file.
    """
    try:
        return verify_cached(name)
    except MissingWeightsError:
        if is_offline():
            raise
    from datamodules import download as http
    from datamodules.storage import write_atomic

    row, folder, retry = WEIGHTS[name], checkpoints_folder(), retry or http.RetryPolicy()
    say(console, row.licence)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}); set TORCH_HOME to a folder of yours"
        ) from error
    with http.locked(folder), download_bars() as show:
        size = row.size_bytes
        if size is None:
            size = http.remote_size(row.url, retry=retry)
        file = http.RemoteFile(name=row.file, size_bytes=size, md5=row.md5, url=row.url)
        part = http.size_of(folder / f"{row.file}.part")
        http.require_free(folder, need_bytes=max(0, size - part))
        told = lambda done: show(row.file, done, size)  # noqa: E731
        path = http.download(file, folder, retry=retry, progress=told)
    if not row.md5:
        found = file_digest(path, "sha256")
        write_atomic(sha256_file(path), f"{found}  {row.file}\n")
        say(console, f"{row.file}: no checksum is published; SHA-256 {found}, kept beside it")
    return path


def fetch_from_hub(model: str, *, revision: str | None, console: Console) -> Path:
    """Bring a base model of Stable Diffusion from the hub into its cache, where it is not there.

    Raises:
        WeightsError: It is in neither, or HF_HUB_OFFLINE forbids the network.
    """
    from lightning_modules.generators.stable_diffusion.weights import find_in_hub_cache

    known = {row.repo: row.licence for row in HUB.values()}
    if model in known and find_in_hub_cache(model, revision=revision) is None and not is_offline():
        say(console, known[model])
    from lightning_modules.generators.stable_diffusion.base import fetch_base

    return fetch_base(model, revision=revision)


def _on_hub(name: str) -> tuple[str | None, str | None]:
    """Model and revision of a name that stands for a model on the hub; None, None for a file."""
    from lightning_modules.generators.stable_diffusion.weights import is_hub_name

    if name in HUB:
        return HUB[name].repo, HUB[name].revision
    model, _, revision = name.partition("@")
    if is_hub_name(model):
        return model, revision or None
    one_of(name, (*WEIGHTS, *HUB), option="weights")
    return None, None


def _path_or_none(name: str) -> Path | None:
    try:
        return find_cached(name)
    except WeightsError:
        return None
