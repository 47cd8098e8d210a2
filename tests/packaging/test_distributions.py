"""What ``python -m build`` makes: a wheel and a source distribution, built once for these tests."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from raftkv.cli.main import EXIT_NO_SERVER, SERVER_MODULES
from raftkv.testing.ports import PortReservation, is_free
from raftkv.version import __version__

TOP = Path(__file__).resolve().parents[2]
SOURCE = ("raftkv", "tests", "docs", "deploy")
"""Folders of the repository that belong into a source distribution as they are."""
NOT_SOURCE = {"__pycache__", ".mypy_cache", ".ruff_cache", ".hypothesis"}
NAME = f"raftkv-{__version__}"


class Built(NamedTuple):
    """The two files, and what was said while they were made."""

    wheel: Path
    sdist: Path
    output: str


def source_files() -> set[str]:
    """Every file of the repository's folders, as its path from the top."""
    return {
        str(path.relative_to(TOP))
        for folder in SOURCE
        for path in (TOP / folder).rglob("*")
        if path.is_file() and not NOT_SOURCE & set(path.parts)
    }


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build from a copy: a build leaves files in the tree that it is made from."""
    directory = tmp_path_factory.mktemp("built")
    source, out = directory / "source", directory / "dist"
    for folder in SOURCE:
        shutil.copytree(TOP / folder, source / folder, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    for path in TOP.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, source)
    done = subprocess.run(  # noqa: S603 -- our own build
        (sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", out, source),
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Built(wheel, sdist, done.stdout)


@pytest.fixture(scope="session")
def described(built: Built) -> Message:
    """The wheel's metadata."""
    with zipfile.ZipFile(built.wheel) as wheel:
        return BytesParser().parsebytes(wheel.read(f"{NAME}.dist-info/METADATA"))


def test_nothing_is_warned_of(built: Built) -> None:
    """Neither of packages that are missing nor of settings that will not be read any more."""
    assert not re.search(r"Package .* is absent|[Dd]eprecat", built.output)


def test_the_wheel_has_the_package_and_nothing_else(built: Built) -> None:
    """Every file of ``raftkv/``, and what a wheel says about itself, the licence with it."""
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    about = {name for name in names if name.startswith(f"{NAME}.dist-info/")}
    assert names - about == {name for name in source_files() if name.startswith("raftkv/")}
    assert f"{NAME}.dist-info/licenses/LICENSE" in about


def test_the_source_distribution_has_the_source_and_nothing_else(built: Built) -> None:
    """All that is needed to build, test and document raftkv; nothing that a run leaves behind."""
    with tarfile.open(built.sdist) as sdist:
        files = {member.name for member in sdist.getmembers() if member.isfile()}
    names = {name.removeprefix(f"{NAME}/") for name in files}
    made = {name for name in names if name.startswith("raftkv.egg-info/")} | {"PKG-INFO"}
    top = {
        *(".editorconfig", ".pre-commit-config.yaml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
        *("MANIFEST.in", "Makefile", "README.md", "ruff.toml", "setup.cfg", "setup.py"),
        "zensical.toml",
    }
    assert names - made == source_files() | top


def test_what_an_index_shows_of_the_readme_has_its_pictures(described: Message) -> None:
    """An index has none of the repository's files: links are absolute, at this version's tag."""
    text = str(described.get_payload())
    assert "](docs/" not in text
    url = described["Home-page"]
    assert f"]({url}/raw/v{__version__}/docs/architecture.svg)" in text
    assert f"]({url}/blob/v{__version__}/docs/guarantees.md)" in text


def test_the_server_extra_is_what_the_command_line_looks_for(described: Message) -> None:
    """``raftkv dev`` must not name a package that the extra does not bring, or forget one."""
    extra = requirements(described, "server") - requirements(described)
    modules = {
        module
        for module, names in metadata.packages_distributions().items()
        if extra & {name.lower().replace("_", "-") for name in names} and not module.startswith("_")
    }
    assert set(SERVER_MODULES) <= modules
    assert len(SERVER_MODULES) == len(extra)


def requirements(described: Message, extra: str = "") -> set[str]:
    """Names of what a distribution requires with an extra."""
    found = (Requirement(text) for text in described.get_all("Requires-Dist", []))
    return {
        one.name.lower().replace("_", "-")
        for one in found
        if one.marker is None or one.marker.evaluate({"extra": extra})
    }


# --- installed ------------------------------------------------------------------------------------


class Environment(NamedTuple):
    """A virtual environment that has a wheel and what it requires, and nothing else."""

    bin: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs, away from every checkout."""
        program, *arguments = command
        return subprocess.run(  # noqa: S603 -- our own programs
            (self.bin / program, *arguments),
            cwd=self.bin,
            capture_output=True,
            text=True,
            check=False,
        )


def installed(wheel: Path, directory: Path, described: Message, extra: str = "") -> Environment:
    """Install a wheel; what it requires is linked from here, as an index may be far away."""
    venv.create(directory, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--python", directory / "bin" / "python", "install")
    options = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
    subprocess.run((*pip, *options, wheel), check=True)  # noqa: S603 -- pip, on our own wheel
    (packages,) = directory.glob("lib/python3*/site-packages")
    waiting, seen = requirements(described, extra), set[str]()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(found.locate_file(top))))
        waiting |= requirements(found.metadata, "") - seen  # type: ignore[arg-type]
    return Environment(directory / "bin")


def test_a_client_is_installed_without_the_server(
    built: Built, described: Message, tmp_path: Path
) -> None:
    """The wheel alone gives ``import raftkv`` and the commands of a client."""
    environment = installed(built.wheel, tmp_path / "venv", described)
    said = environment.run("python", "-c", "import raftkv; print(raftkv.Client, raftkv.__file__)")
    assert said.stderr == ""
    assert str(tmp_path) in said.stdout
    assert environment.run("raftkv", "--version").stdout.strip().endswith(__version__)
    assert environment.run("raftkv", "status", "--help").returncode == 0
    refused = environment.run("raftkv", "dev")
    assert refused.returncode == EXIT_NO_SERVER
    assert "pip install 'raftkv[server]'" in refused.stderr


@contextlib.contextmanager
def two_nodes(environment: Environment, directory: Path) -> Iterator[int]:
    """Run ``raftkv dev`` with two nodes; gives the first one's port, the other's is the next."""
    reservation = PortReservation(1)
    while not is_free(reservation.ports[0] + 1):
        reservation.release()
        reservation = PortReservation(1)
    (port,) = reservation.ports
    arguments = ("--nodes", "2", "--shards", "2", "--http-port", str(port), "--data-dir", directory)
    command = (environment.bin / "raftkv", "dev", *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        try:
            assert "ready\n" in iter(process.stdout.readline, "")
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            reservation.release()


@pytest.mark.cluster
def test_the_ten_lines_of_the_readme_run_on_what_was_installed(
    built: Built, described: Message, tmp_path: Path
) -> None:
    """``raftkv[server]`` is a cluster: templates and all other data files came with the wheel."""
    environment = installed(built.wheel, tmp_path / "venv", described, "server")
    (lines,) = re.findall(
        r"## Ten lines\n+```python\n(.*?)```", (TOP / "README.md").read_text(), re.DOTALL
    )
    with two_nodes(environment, tmp_path / "data") as first:
        program = lines.replace(":8000", f":{first}").replace(":8001", f":{first + 1}")
        done = environment.run("python", "-c", program)
        assert done.stderr == ""
        assert done.stdout.splitlines() == [
            "b'{cart:7}/items' b'3'",
            "b'{cart:7}/total' b'12.50'",
        ]
