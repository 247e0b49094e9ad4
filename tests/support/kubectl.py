"""The real kubectl of the test environment, run as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread

KUBECTL = str(Path(sys.executable).parent / "kubectl")
_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl with one kubeconfig; ``home`` holds its configuration and caches."""

    home: Path

    @staticmethod
    def configured(home: Path, kubeconfig: str) -> Kubectl:
        (home / "kubeconfig").write_text(kubeconfig)
        return Kubectl(home)

    async def run(self, *arguments: str, stdin: str = "", expect: int = 0) -> str:
        """Standard output, or standard error of a command that is expected to fail."""
        with anyio.fail_after(_SECONDS):
            done = await to_thread.run_sync(self._run, arguments, stdin, abandon_on_cancel=True)
        assert done.returncode == expect, f"{arguments}: {done.stderr}{done.stdout}"
        return done.stderr if expect else done.stdout

    def _run(self, arguments: tuple[str, ...], stdin: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [KUBECTL, "--cache-dir", str(self.home / "cache"), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            env=self.environment(),
        )

    def environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.home / "kubeconfig"), "HOME": str(self.home)}
