"""A stage of a user's own module."""


def run_toy(context):
    """Count what its input counted, and one more."""
    before = (
        context.store.result(*context.node.upstream["toy"].split("/"))
        if (context.node.upstream)
        else {"count": 0}
    )
    (context.run_dir / "toy.txt").write_text(str(before["count"] + 1))
    return {"count": before["count"] + 1}
