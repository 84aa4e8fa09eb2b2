"""The published way in a process of its own, in the environment that a plain script has.

A sweep's stages keep freed memory (`GLIBC_TUNABLES`), which is one of our fast paths: a script
would give the pages of every large tensor back and fetch them again.
"""

import json
import os
import subprocess
import sys
from typing import Any

from experiments.config.paths import ROOT


class PlainProcess:
    """Starts `experiments.bench.plain_child` with the first call and ends it with `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def call(self, name: str, /, **given: Any) -> tuple[float, float]:
        """Do one thing there.

        Args:
            name: A method of the child's `Plain`.
            given: Its arguments, of JSON types.

        Returns:
            Seconds of wall clock and of processor time that the work took, measured beside it.

        Raises:
            RuntimeError: With the child's last line, where it failed.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        answer = ""
        try:
            process.stdin.write(json.dumps({"call": name, "given": given}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            pass
        if not answer:
            self.close()
            raise RuntimeError("the process of the published way ended before its answer")
        content = json.loads(answer)
        if "error" in content:
            raise RuntimeError(f"the published way failed: {content['error']}")
        return content["wall_s"], content["cpu_s"]

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
            package = str(ROOT)
            path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "experiments.bench.plain_child"],
                env=environment | {"PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return self._process
