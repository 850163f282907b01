"""The README's code blocks run as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = [
    (language, code)
    for language, code in re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
    # What installs the environment that this test runs in.
    if not code.startswith("make ")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tables that the blocks speak of."""
    place = tmp_path_factory.mktemp("readme")
    clicks = [f"u{user},p{(7 * user + 3 * step) % 25}" for user in range(40) for step in range(9)]
    (place / "clicks.csv").write_text("\n".join(["user,product", *clicks]) + "\n")
    items = [f"p{item},{['red wool coat', 'steel knife'][item % 2]} {item}" for item in range(25)]
    (place / "items.csv").write_text("\n".join(["product,title", *items]) + "\n")
    return place


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_readmes_code_runs_as_written(folder, number):
    language, code = BLOCKS[number]
    command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "run_recbole" in code:
        assert "test result" in done.stderr
