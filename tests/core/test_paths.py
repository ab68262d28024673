"""Places where nothing can be written, and what is said of them."""

import subprocess
import sys
from pathlib import Path

import pytest

# In a namespace of its own, so that the mount is nobody else's and ends with the process.
MOUNTED = 'mount -t tmpfs -o ro none "$1" && shift && exec "$@"'
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNTED, "sh")


def test_a_read_only_file_system_is_named(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    if subprocess.run([*NAMESPACE, str(place), "true"], capture_output=True).returncode:
        pytest.skip("no namespaces of users here")
    program = [sys.executable, "-c", "from earlybert.core.cli import main; main()"]
    command = ["prepare", "--source", "pydocs", "--out", str(place / "new" / "corpus")]
    done = subprocess.run([*NAMESPACE, str(place), *program, *command], capture_output=True, text=True)
    reason = f"which cannot be written to ({place} lies on a read-only file system)"
    assert done.returncode == 2 and done.stderr == f"earlybert: error: out is {place / 'new'}, {reason}\n"
