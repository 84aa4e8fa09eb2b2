"""README and docs: what they name is there, and what they show is read."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_documents_name_only_commands_that_exist():
    from typer.main import get_command

    from experiments.cli import app

    names = set(get_command(app).commands)
    text = "\n".join((ROOT / name).read_text() for name in ("README.md", "docs/commands.md"))
    used = set(re.findall(r"`sonosweep ([a-z][a-z-]*)", text))
    assert used == names


def test_the_recipe_in_the_documents_is_one(tmp_path):
    from experiments.config.recipe import load_config

    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    config = load_config(str(tmp_path / "mine.yaml"), [])
    assert len(config.arms()) == 3 * 3 + 1
    assert config.generator_names() == ["pixel", "stable_diffusion"]
    assert type(config.judge()) is type(config.unet)


def test_documents_name_only_files_that_exist():
    """Paths in backticks and links; what a run writes is not in the tree."""
    lost = []
    for page in PAGES:
        text = page.read_text()
        paths = r"`((?:experiments|datamodules|lightning_modules|tests|docs)/[^`*{ ]*)`"
        lost += [name for name in re.findall(paths, text) if not (ROOT / name).exists()]
        links = re.findall(r"\]\(([^):#]+\.(?:md|png))\)", text)
        lost += [name for name in links if not (page.parent / name).exists()]
    assert not lost


def test_links_to_a_heading_find_it():
    def anchors(page):
        heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}

    lost, found = [], 0
    for page in PAGES:
        for name, anchor in re.findall(r"\]\(([^):#]*\.md)?#([^)]+)\)", page.read_text()):
            found += 1
            if anchor not in anchors(page.parent / name if name else page):
                lost.append(f"{page.name}: {name}#{anchor}")
    assert found > 10
    assert not lost


def test_documents_name_only_targets_that_exist():
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(page.read_text() for page in PAGES)
    used = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "sweep", "table-box", "figure-ledger", "test"} <= used
    assert used <= known, used - known


def test_documents_name_only_settings_that_exist():
    from experiments.config.schema import ExperimentConfig

    groups = {f.name: f.type for f in fields(ExperimentConfig) if is_dataclass(f.type)}
    # Names of files are no settings.
    named = re.compile(
        rf"(?<![\w./])((?:{'|'.join(groups)})(?:\.[a-z_]\w+)+)\b(?!\.\.\.|[\w.]*[(/])"
    )
    files = (".md", ".json", ".safetensors", ".yaml", ".csv", ".py", ".png", ".pdf", ".html", ".ai")
    found, unknown = set(), set()
    for page in PAGES:
        for key in named.findall(page.read_text()):
            if not key.endswith(files):
                found.add(key)
                node = ExperimentConfig
                for part in key.split("."):
                    # A block of settings holds those of its kind.
                    known = {f.name: f.type for f in fields(node)} if is_dataclass(node) else {}
                    if part not in known:
                        unknown.add(f"{page.name}: {key}")
                        break
                    node = known[part]
    assert {"sweep.also", "gate.judge", "statistics.primary", "unet.light_augmentation"} <= found
    assert not unknown
