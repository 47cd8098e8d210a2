"""What keeps a node from starting: one root, one line, one exit code."""

import contextlib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest
from click.testing import CliRunner

import raftkv
from raftkv.cli.serve import serve_command
from raftkv.core.errors import StartError
from raftkv.engine import node

SERVER = ("core", "storage", "raft", "rpc", "engine")
"""What runs in the process that ``raftkv serve`` starts, besides reading the configuration."""

WHILE_SERVING = {
    "CallError": "ends one call",
    "EngineUnavailableError": "of a worker that has lost its engine",
    "FrameError": "ends one connection",
    "HandshakeError": "ends one connection",
    "FactsDiffer": "ends one connection",
    "TooSlow": "ends one attempt to connect",
    "ReplicaBusy": "says that a group cannot be retired now",
    "SnapshotStale": "drops a snapshot that was received",
    "SnapshotBusy": "makes one peer wait",
    "WriterStalledError": "gives one snapshot up",
    "ChecksumError": "whoever reads the file makes a DataDirError of it",
}
"""Errors that no start ends with, and why."""


def modules() -> Iterator[ModuleType]:
    """Every module of the server."""
    for package in SERVER:
        path = [f"{place}/{package}" for place in raftkv.__path__]
        for found in pkgutil.walk_packages(path, f"raftkv.{package}."):
            yield importlib.import_module(found.name)
    yield importlib.import_module("raftkv.cli.config")


def errors() -> dict[str, type[Exception]]:
    """Every exception that those modules define."""
    return {
        name: kind
        for module in modules()
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Exception) and kind.__module__ == module.__name__
    }


def test_every_error_that_a_start_may_end_with_is_a_start_error() -> None:
    """An error of the server has the root StartError, or stands here as one of serving."""
    others = {name for name, kind in errors().items() if not issubclass(kind, StartError)}
    assert others == WHILE_SERVING.keys()


def test_the_page_of_the_root_names_every_one() -> None:
    """The tree in core/errors.py is whole."""
    tree = inspect.getdoc(inspect.getmodule(StartError)) or ""
    roots = {
        name
        for name, kind in errors().items()
        if StartError in kind.__bases__ or name == "StartError"
    }
    assert [name for name in sorted(roots) if name not in tree] == []


def test_serve_ends_with_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever StartError a node ends with, the operator reads its message alone."""

    class OtherError(StartError):
        pass

    def run_node(*_: object) -> None:
        raise OtherError("the moon is in the wrong place")

    monkeypatch.setattr(node, "run_node", run_node)
    file = tmp_path_factory.mktemp("node") / "node.toml"
    file.write_text(
        '[cluster]\nid = "demo"\nreplicas = 1\n[cluster.nodes]\nn1 = "127.0.0.1:7001"\n'
        '[node]\nname = "n1"\ndata_dir = "data"\n[security]\nsecret = "0123456789abcdef"\n'
    )
    file.chmod(0o600)
    for of_the_whole_process in ("logs.set_up", "logs.speak_for_python", "open_standard_streams"):
        monkeypatch.setattr(f"raftkv.cli.serve.{of_the_whole_process}", lambda *_: None)
    monkeypatch.setattr("raftkv.cli.serve.signal.signal", lambda *_: None)
    monkeypatch.setattr("raftkv.cli.serve._own_process_group", contextlib.nullcontext)
    ended = CliRunner().invoke(serve_command, ["--config", str(file)])
    assert (ended.exit_code, ended.stderr) == (1, "raftkv: the moon is in the wrong place\n")
