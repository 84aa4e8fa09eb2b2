"""What the hub says of a base model: its commit, or in one line why there is none. Torch-free."""

import re
from pathlib import Path

from lightning_modules.errors import WeightsError
from lightning_modules.generators.stable_diffusion.weights import (
    DEFAULT_REVISION,
    THREE_WAYS,
    find_in_hub_cache,
    shorten,
)
from lightning_modules.weights_table import is_offline

COMMIT = re.compile(r"[0-9a-f]{40}")
_INDEX = "model_index.json"
"""A small file that every model of diffusers has."""


def is_commit(revision: str | None) -> bool:
    """Whether a revision stands for one content for ever."""
    return revision is not None and COMMIT.fullmatch(revision) is not None


def cached_commit(name: str, *, revision: str | None) -> str | None:
    """The commit that the hub's cache has for a branch or tag; None where it has none."""
    found = find_in_hub_cache(name, revision=revision)
    return None if found is None else found.name


def hub_commit(name: str, *, revision: str | None) -> str:
    """The commit of a branch or tag: what the hub says, else what its cache here says.

    Args:
        name: `owner/model`.
        revision: Branch or tag, None for the main branch; a commit is given back as it is.

    Raises:
        WeightsError: Neither knows it; one line that says why and what to do.
    """
    if revision is not None and is_commit(revision):
        return revision
    cached = cached_commit(name, revision=revision)
    if is_offline():
        if cached is None:
            raise hub_refusal(name, revision=revision)
        return cached
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HTTPError

    try:
        # By itself this asks once: without a network the cache serves at once.
        get_hf_file_metadata(hf_hub_url(name, _INDEX, revision=revision))
        # Unlike a question by itself, this leaves the branch's commit in the cache, for offline.
        return Path(hf_hub_download(name, _INDEX, revision=revision)).parent.name
    except (HTTPError, OSError, ValueError) as error:
        if cached is not None and not _is_refused(error):
            return cached
        raise hub_refusal(name, revision=revision, error=error) from error


def hub_refusal(name: str, *, revision: str | None, error: Exception | None = None) -> WeightsError:
    """One line on a model that the hub does not give, with what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError

    at = name if revision is None else f"{name}@{revision}"
    begin = f"stable_diffusion.base_model={at}: no such path here, and"
    if is_offline():
        return WeightsError(
            f"{begin} not in the hub's cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids "
            f"the network; `sonosweep weights fetch {at}` without it fetches the model"
        )
    if isinstance(error, GatedRepoError):
        return WeightsError(
            f"{begin} the hub gives it to logged-in users alone; accept its terms on its page, "
            "then `hf auth login`, or set HF_TOKEN"
        )
    if _is_refused(error):
        return WeightsError(
            f"{begin} the hub has no model {name} for everyone; correct the name, or `hf auth "
            f"login` (HF_TOKEN) if it is a private one"
        )
    if "does not seem to be served by" in str(error):
        return WeightsError(
            f"{begin} what answers is not the hub but a proxy's or a login page; look at "
            f"{constants.ENDPOINT} in a browser, set HTTPS_PROXY or HF_ENDPOINT, or "
            f"`sonosweep weights fetch {at}` on another network"
        )
    branch = DEFAULT_REVISION if revision is None else revision
    return WeightsError(
        f"{begin} the hub does not give its {branch} ({shorten(error or OSError())}); {THREE_WAYS}"
    )


def _is_refused(error: Exception | None) -> bool:
    """Whether the hub answered, and does not give the model to this user."""
    from huggingface_hub.errors import RepositoryNotFoundError

    answer = getattr(error, "response", None)
    return isinstance(error, RepositoryNotFoundError) or (
        answer is not None and answer.status_code in (401, 403)
    )
