"""Where the deployment files are, and how their tools are run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

TOP = Path(__file__).parents[2]
DEPLOY = TOP / "deploy"

# The tools that come as Python packages are beside the interpreter.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def run_tool(
    *command: str | Path, directory: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a tool to its end."""
    return subprocess.run(  # noqa: S603 -- the commands of these tests
        [str(part) for part in command],
        cwd=directory,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def documents(file: Path) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(file.read_text()))
