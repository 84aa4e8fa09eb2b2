"""A stage of a user's own module."""

import sys

from experiments.store.runs import read_result


def run_toy(context):
    """Count what its input counted, and one more; with what its process has imported."""
    inputs = context.node.upstream
    before = read_result(context.upstream_dir("toy")) if inputs else {"count": 0}
    (context.run_dir / "toy.txt").write_text(str(before["count"] + 1))
    return {"count": before["count"] + 1, "modules": sorted(sys.modules)}
