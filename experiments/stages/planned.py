"""Whether the real images that a stage read are those that its id names. Torch-free."""

from collections.abc import Iterator

from datamodules.synthetic import read_metadata
from datamodules.unchanged import require_unchanged
from experiments.stages.context import StageContext


def require_as_planned(context: StageContext) -> None:
    """Hash the files of all real images that the stage may have read, and compare.

    Raises:
        ChangedError: For the first one that is not what it was when the sweep began.
    """
    known = context.samples | context.unlabelled
    ids = [name for name in dict.fromkeys(_named(context)) if name in known]
    require_unchanged([known[name] for name in ids], [context.content[name] for name in ids])


def _named(context: StageContext) -> Iterator[str]:
    """Names in the content's lists of `[id, hash]`, and those of images that inputs label."""
    for value in context.node.content.values():
        for each in value if isinstance(value, list) else ():
            if isinstance(each, list | tuple) and len(each) == 2 and isinstance(each[0], str):
                yield each[0]
    for role in context.node.upstream:
        path = context.upstream_dir(role) / "metadata.jsonl"
        if path.is_file():
            yield from (p.image_of for p in read_metadata(path) if p.image_of is not None)
