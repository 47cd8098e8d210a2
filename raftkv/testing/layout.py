"""The directory of a local cluster: which nodes it has, at which ports, and their files.

::

    DIR/cluster.json        what the directory was made for
    DIR/cluster.secret      with which the nodes know each other (0600)
    DIR/.gitignore          leaves all of it to no repository, the secret above all
    DIR/n1/node.toml        configuration, for ``raftkv serve --config DIR/n1/node.toml``
    DIR/n1/pid              process id while the node runs
    DIR/n1/log              what the node has written to its standard output and error
    DIR/n1/data/            the node's data directory
"""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

FORMAT = 1
HOST = "127.0.0.1"

Options = Mapping[str, Mapping[str, int | bool | str]]
"""Options of node.toml, by table, beyond those that the layout writes itself."""


class LayoutError(Exception):
    """The directory is not what was asked for; one line for the person who asked."""


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """One node's name, ports and files."""

    name: str
    directory: Path
    http_port: int
    peer_port: int

    @property
    def config(self) -> Path:
        """Its node.toml."""
        return self.directory / "node.toml"

    @property
    def pid_file(self) -> Path:
        """Where it writes its process id."""
        return self.directory / "pid"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.directory / "log"

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://{HOST}:{self.http_port}"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a directory was made for; all but the ports cannot change."""

    cluster_id: str
    nodes: int
    shards: int
    replicas: int
    http_ports: tuple[int, ...]
    peer_ports: tuple[int, ...]
    initialized: bool = False
    format: int = FORMAT


class Layout:
    """A local cluster's directory, made once and read again later."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        self.directory = directory
        self.shape = shape
        self.nodes = tuple(
            NodeLayout(f"n{number}", directory / f"n{number}", http_port, peer_port)
            for number, (http_port, peer_port) in enumerate(
                zip(shape.http_ports, shape.peer_ports, strict=True), start=1
            )
        )

    @staticmethod
    def _shape_file(directory: Path) -> Path:
        return directory / "cluster.json"

    @classmethod
    def open(cls, directory: Path) -> Self | None:
        """What is there already; None for a directory that does not exist or is empty.

        Raises:
            LayoutError: The directory holds something else.
        """
        file = cls._shape_file(directory)
        try:
            document = json.loads(file.read_text())
            version = document.pop("format")
            if version != FORMAT:
                raise LayoutError(f"{file}: unknown format {version}")
            for name in ("http_ports", "peer_ports"):
                document[name] = tuple(document[name])
            return cls(directory, Shape(**document))
        except FileNotFoundError:
            if directory.exists() and any(directory.iterdir()):
                raise LayoutError(
                    f"{directory}: is not empty and was not made by raftkv dev"
                ) from None
            return None
        except NotADirectoryError as error:
            raise LayoutError(f"{directory}: {error.strerror}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LayoutError(f"{file}: cannot be used: {error}") from error

    def write(self, options: Options | None = None) -> None:
        """Make the directory, secret and configurations; :attr:`Shape.initialized` comes last."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _replace(self.directory / ".gitignore", "# The cluster's secret is in here.\n*\n")
            self._write_shape()
            _write_secret(self.directory / "cluster.secret")
            for node in self.nodes:
                node.directory.mkdir(exist_ok=True)
                _replace(node.config, self._toml(node, options or {}))
        except OSError as error:
            raise LayoutError(f"{error.filename or self.directory}: {error.strerror}") from error

    def mark_initialized(self) -> None:
        """From now on a node without its data is a fault, not a node to be made."""
        self.shape = Shape(**{**asdict(self.shape), "initialized": True})
        self._write_shape()

    def _write_shape(self) -> None:
        _replace(self._shape_file(self.directory), json.dumps(asdict(self.shape), indent=2) + "\n")

    def _toml(self, node: NodeLayout, options: Options) -> str:
        tables: dict[str, dict[str, Any]] = {
            "cluster": {
                "id": self.shape.cluster_id,
                "shards": self.shape.shards,
                "replicas": self.shape.replicas,
            },
            "cluster.nodes": {other.name: f"{HOST}:{other.peer_port}" for other in self.nodes},
            "node": {"name": node.name, "data_dir": "data", "pid_file": "pid"},
            "http": {"listen": f"{HOST}:{node.http_port}"},
            "security": {"secret_file": "../cluster.secret"},
        }
        for table, extra in options.items():
            tables.setdefault(table, {}).update(extra)
        # JSON's strings, numbers and booleans are written as TOML writes them.
        lines = ["# Written by raftkv dev, and again when its ports change.", ""]
        for table, members in tables.items():
            lines.append(f"[{table}]")
            lines += [
                f"{name} = {json.dumps(value, ensure_ascii=False)}"
                for name, value in members.items()
            ]
            lines.append("")
        return "\n".join(lines)


def _write_secret(file: Path) -> None:
    """Mint the cluster's secret, readable by its owner only from its first moment."""
    if file.exists():
        return
    temporary = file.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_urlsafe(32) + "\n")
    temporary.rename(file)


def _replace(file: Path, text: str) -> None:
    """Write whole or not at all, so that an interruption leaves something that can be read."""
    temporary = file.with_name(file.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(file)
