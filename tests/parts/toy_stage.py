"""A stage of a user's own module."""

import sys


def run_toy(context):
    """Count what its input counted, and one more; with what its process has imported."""
    before = (
        context.store.result(*context.node.upstream["toy"].split("/"))
        if (context.node.upstream)
        else {"count": 0}
    )
    (context.run_dir / "toy.txt").write_text(str(before["count"] + 1))
    return {"count": before["count"] + 1, "modules": sorted(sys.modules)}
