"""Base models on the hub that a recipe names by a branch: held to a commit before ids are made."""

from pathlib import Path

import yaml

from experiments.config.schema import ExperimentConfig
from experiments.config.stored import STORED_NAME
from experiments.store.runs import RunStore
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig
from lightning_modules.generators.stable_diffusion.hub import cached_commit, hub_commit, is_commit
from lightning_modules.generators.stable_diffusion.weights import is_hub_name, resolve_base


def pin_bases(config: ExperimentConfig, *, asks_hub: bool) -> list[str]:
    """Put the commit in place of a branch or tag of every base model of the sweep, in `config`.

    A sweep that began with a commit of the main branch goes on with it. Otherwise the hub is
    asked, and its cache where there is no network or `asks_hub` is false; a model that is not in
    the cache then keeps its branch's name.

    Returns:
        What a user should know, a line a model.

    Raises:
        WeightsError: Nothing gives the commit.
    """
    if not any(config.condition(name).source.is_generated for _, name in config.arms()):
        return []
    # All of them first: a block starts from the section, which is changed below.
    named = {name: config.generator_named(name) for name in config.generator_names()}
    begun, notes = _begun_with(config), []
    for name, settings in named.items():
        if not isinstance(settings, StableDiffusionConfig):
            continue
        model, revision = resolve_base(settings.base_model, revision=settings.revision)
        if not is_hub_name(model) or is_commit(revision):
            continue
        commit = begun.get(model) if revision is None else None
        if commit is not None:
            notes.append(f"{model}: commit {commit}, with which this sweep began")
        else:
            ask = hub_commit if asks_hub else cached_commit
            commit = ask(model, revision=revision)
        if commit is None:
            notes.append(f"{model}: the sweep asks the hub for its commit when it starts")
        elif name in config.generators:
            config.generators[name]["revision"] = commit
        else:
            settings.revision = commit
    return list(dict.fromkeys(notes))


def _begun_with(config: ExperimentConfig) -> dict[str, str]:
    """Commits of base models by name, in the recipe that the sweep keeps."""
    folder = RunStore(Path(config.store.root)).sweep_dir(config.name)
    try:
        kept = yaml.safe_load((folder / STORED_NAME).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(kept, dict):
        return {}
    section = kept.get("stable_diffusion") or {}
    blocks = [section, *({**section, **each} for each in (kept.get("generators") or {}).values())]
    pairs = [(block.get("base_model"), block.get("revision")) for block in blocks]
    return {str(model): commit for model, commit in pairs if model and is_commit(commit)}
