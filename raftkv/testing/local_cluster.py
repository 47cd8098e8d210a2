"""A real cluster of real processes on this machine, for tests and for trying things."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from raftkv.engine.pidfile import holder
from raftkv.testing.layout import Layout, LayoutError, NodeLayout, Options, Shape
from raftkv.testing.ports import PortReservation, is_free
from raftkv.testing.processes import RAFTKV_COMMAND, NodeProcess

if TYPE_CHECKING:
    from raftkv.client import Client

POLL_S = 0.05
READY_TIMEOUT_S = 30.0
STOP_GRACE_S = 15.0
_PROBE_TIMEOUT_S = 1.0


class ClusterError(Exception):
    """The cluster did not do what was asked; the message ends with what the nodes said."""


class LocalCluster:
    """Starts nodes ``n1``, ``n2``, ... as processes and plays their fate.

    ::

        with LocalCluster(nodes=3) as cluster:
            client = cluster.client()
            client.put("greeting", b"hello")
            cluster.kill("n1")
            assert client.get("greeting").value == b"hello"

    Args:
        directory: Where the nodes' files are. A temporary one by default, removed in the end
            unless the ``with`` block raised; a directory of an earlier cluster is used again.
        nodes: How many.
        shards: How many.
        replicas: Of each shard; by default three, or as many as there are nodes.
        http_ports: For clients, one for each node; free ones by default.
        options: More options of node.toml: ``{"raft": {"heartbeat_ms": 50}}``.
        ready_timeout_s: How long to wait for a leader of every shard.
        command: How to run raftkv.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        nodes: int = 3,
        shards: int = 4,
        replicas: int | None = None,
        http_ports: Sequence[int] | None = None,
        options: Options | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
        command: Sequence[str] = RAFTKV_COMMAND,
    ) -> None:
        self._is_temporary = directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix="raftkv-")).absolute()
        self._wanted = (nodes, shards, min(3, nodes) if replicas is None else replicas)
        self._http_ports = None if http_ports is None else tuple(http_ports)
        self._options = options
        self._ready_timeout_s = ready_timeout_s
        self._command = tuple(command)
        self._reservation: PortReservation | None = None
        self._layout: Layout | None = None
        self._processes: dict[str, NodeProcess] = {}

    # --- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if self._is_temporary and kind is None:
            shutil.rmtree(self.directory)

    def start(self) -> None:
        """Make the directory if it is new, start every node, and wait until all are ready."""
        self.prepare()
        for name in self.names:
            self.start_node(name)
        self.wait_ready()

    def prepare(self) -> None:
        """Make or check the directory, without starting anything.

        Ports are checked before anything is written, so that a port in use leaves no traces.

        Raises:
            LayoutError: The directory was made for another cluster or is one's that runs, or a
                port is in use.
        """
        layout = Layout.open(self.directory)
        if layout is None:
            layout = self._new_layout()
        else:
            self._check_shape(layout.shape)
            layout = self._with_ports(layout)
        _check_unused(layout)
        self._layout = layout
        if not layout.shape.initialized:
            layout.write(self._options)
            with ThreadPoolExecutor(len(layout.nodes)) as pool:
                list(pool.map(self._initialize, layout.nodes))
            layout.mark_initialized()
        self._processes = {
            node.name: NodeProcess(node.name, node.config, node.log, self._command)
            for node in layout.nodes
        }

    def _new_layout(self) -> Layout:
        nodes, shards, replicas = self._wanted
        http_ports = self._http_ports
        needed = nodes if http_ports else 2 * nodes
        self._reservation = PortReservation(needed)
        ports = self._reservation.ports
        cluster_id = self.directory.name if self.directory.name.isalnum() else "local"
        return Layout(
            self.directory,
            Shape(
                cluster_id=cluster_id[:32],
                nodes=nodes,
                shards=shards,
                replicas=replicas,
                http_ports=http_ports or ports[nodes:],
                peer_ports=ports[:nodes],
            ),
        )

    def _check_shape(self, shape: Shape) -> None:
        made_for = (shape.nodes, shape.shards, shape.replicas)
        for name, wanted, made in zip(
            ("nodes", "shards", "replicas"), self._wanted, made_for, strict=True
        ):
            if wanted != made:
                raise LayoutError(
                    f"{self.directory}: was made with --{name} {made}, not {wanted}; "
                    "use that or another directory"
                )

    def _with_ports(self, layout: Layout) -> Layout:
        """The same cluster at other ports for clients, if others are asked for."""
        if self._http_ports is None or self._http_ports == layout.shape.http_ports:
            return layout
        old = layout.shape
        moved = Layout(
            layout.directory,
            Shape(
                cluster_id=old.cluster_id,
                nodes=old.nodes,
                shards=old.shards,
                replicas=old.replicas,
                http_ports=self._http_ports,
                peer_ports=old.peer_ports,
                initialized=old.initialized,
            ),
        )
        _check_unused(moved)
        moved.write(self._options)
        return moved

    def _initialize(self, node: NodeLayout) -> None:
        result = subprocess.run(  # noqa: S603 -- our own command
            [*self._command, "init", "--if-needed", "--config", str(node.config)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            said = result.stderr.strip().removeprefix("raftkv: ")
            raise ClusterError(said or f"init of {node.name} ended with {result.returncode}")

    def stop(self) -> None:
        """Stop every node cleanly; one that does not stop in time is killed."""
        for process in self._processes.values():
            process.signal_group(signal.SIGCONT)  # a frozen node cannot stop
            process.terminate()
        deadline = time.monotonic() + STOP_GRACE_S
        for process in self._processes.values():
            if not process.wait(max(0.0, deadline - time.monotonic())):
                process.kill()
        for node in () if self._layout is None else self._layout.nodes:
            _stop_by_pid_file(node, deadline)
        if self._reservation is not None:
            self._reservation.release()
            self._reservation = None

    # --- nodes ----------------------------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        """Its files and ports."""
        if self._layout is None:
            raise RuntimeError("the cluster was not started")
        return self._layout

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes' names."""
        return tuple(node.name for node in self.layout.nodes)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients find the nodes."""
        return tuple(node.url for node in self.layout.nodes)

    def node(self, name: str) -> NodeLayout:
        """Ports and files of one node."""
        return self.layout.nodes[self.names.index(name)]

    def process(self, name: str) -> NodeProcess:
        """The process of one node."""
        return self._processes[name]

    def pid(self, name: str) -> int:
        """The process id of one node; its process group has the same number."""
        return self._processes[name].pid

    def init_node(self, name: str) -> None:
        """Initialize a node that lost its data directory: it is another node from then on."""
        self._initialize(self.node(name))

    def start_node(self, name: str) -> None:
        """Start one node, without waiting for it."""
        self._processes[name].start()

    def stop_node(self, name: str) -> int:
        """Stop one node cleanly and return its exit code."""
        process = self._processes[name]
        process.terminate()
        if not process.wait(STOP_GRACE_S):
            process.kill()
            raise ClusterError(f"{name} did not stop within {STOP_GRACE_S:.0f} s{self._said(name)}")
        code = process.exit_code
        return 0 if code is None else code

    def kill(self, name: str) -> None:
        """End all processes of a node at once, as when its machine loses power."""
        self._processes[name].kill()

    def pause(self, name: str) -> None:
        """Freeze all processes of a node (SIGSTOP)."""
        self._processes[name].signal_group(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a frozen node go on (SIGCONT)."""
        self._processes[name].signal_group(signal.SIGCONT)

    def restart(self, name: str, *, wait: bool = True) -> None:
        """Start a node again that was killed or stopped; one that runs is stopped first."""
        if self._processes[name].is_running:
            self.stop_node(name)
        self.start_node(name)
        if wait:
            self.wait_ready(only=(name,))

    # --- what it is like ------------------------------------------------------------------------

    def wait_ready(
        self, timeout_s: float | None = None, *, only: Sequence[str] | None = None
    ) -> None:
        """Wait until every node that runs is ready: its shards have leaders that it knows.

        Raises:
            ClusterError: Not in time, or a node ended while it was waited for.
        """
        waiting = set(only or (name for name in self.names if self._processes[name].is_running))
        if not waiting:
            raise ClusterError("no node runs")
        deadline = time.monotonic() + (timeout_s or self._ready_timeout_s)
        with ThreadPoolExecutor(len(waiting)) as pool:
            while waiting:
                for name in sorted(waiting):
                    self._check_alive(name)
                names = sorted(waiting)
                for name, ready in zip(names, pool.map(self.is_ready, names), strict=True):
                    if ready:
                        waiting.discard(name)
                if waiting and time.monotonic() > deadline:
                    raise ClusterError(f"not ready in time: {', '.join(names)}{self._said(*names)}")
                if waiting:
                    time.sleep(POLL_S)

    def is_ready(self, name: str) -> bool:
        """Whether one node says that it is ready."""
        try:
            with urllib.request.urlopen(  # noqa: S310 -- http:// on loopback
                f"{self.node(name).url}/readyz", timeout=_PROBE_TIMEOUT_S
            ) as response:
                return bool(response.status == 200)  # noqa: PLR2004 -- OK
        except (urllib.error.URLError, OSError):
            return False

    def client(self, **settings: Any) -> "Client":
        """A client of all nodes; ``settings`` are those of :class:`raftkv.Client`."""
        from raftkv.client import Client  # noqa: PLC0415 -- plugins must load quickly

        return Client(self.urls, **settings)

    def shards(self) -> Mapping[int, Mapping[str, Any]]:
        """What the cluster says of each shard."""
        with self.client() as client:
            return {row["shard"]: row for row in client.shards()["shards"]}

    def leader_of(self, shard: int) -> str | None:
        """The node that leads a shard, None while there is none."""
        leader = self.shards()[shard]["leader"]
        return None if leader is None else str(leader)

    def wait_for(
        self, condition: Callable[[], bool], what: str, timeout_s: float = READY_TIMEOUT_S
    ) -> None:
        """Wait until ``condition`` holds.

        Raises:
            ClusterError: It does not in time; the message says ``what`` was waited for.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise ClusterError(f"not within {timeout_s:.0f} s: {what}{self._said(*self.names)}")
            time.sleep(POLL_S)

    def logs(self) -> dict[str, str]:
        """The end of what each node said."""
        return {name: process.log_tail() for name, process in self._processes.items()}

    def _check_alive(self, name: str) -> None:
        code = self._processes[name].exit_code
        if code is not None:
            raise ClusterError(f"{name} ended with code {code}{self._said(name)}")

    def _said(self, *names: str) -> str:
        return "".join(f"\n--- {name} ---\n{self._processes[name].log_tail()}" for name in names)


def _check_unused(layout: Layout) -> None:
    for node in layout.nodes:
        pid = holder(node.pid_file)
        if pid is not None:
            raise LayoutError(
                f"{layout.directory}: is in use: its node {node.name} runs as process {pid}; "
                "use another directory (--data-dir; with make run, DATA=...)"
            )
    for node in layout.nodes:
        if not is_free(node.http_port):
            raise LayoutError(
                f"{node.name}: port {node.http_port} is in use; choose another by --http-port "
                "(with make run, HTTP_PORT=...)"
            )
        if not is_free(node.peer_port):
            raise LayoutError(
                f"{node.name}: port {node.peer_port}, where it listens for its peers, is in use"
            )


def _stop_by_pid_file(node: NodeLayout, deadline: float) -> None:
    """Stop a node that somebody else has started again (``raftkv serve`` by hand)."""
    pid = holder(node.pid_file)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    while holder(node.pid_file) == pid:
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
