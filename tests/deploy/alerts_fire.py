"""Every alert against a real Prometheus and a real cluster: ``python tests/deploy/alerts_fire.py``.

Three nodes over TLS, Debian's Prometheus scraping them as deploy/prometheus/prometheus.yml says,
and one fault after the other: each alert must fire, and clear once the fault is mended. Takes some
minutes and root (for a small disk and strace); prints a table in Markdown, and ends with 1 if any
alert did not do its part.

So that nobody waits for hours, times are scaled: ``for`` and the ranges of rates to a tenth, and
the lag that counts to a hundredth. The expressions are those of deploy/prometheus/alerts.yml.
"""

import contextlib
import datetime as dt
import itertools
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "cluster")]

from deployment import DEPLOY, documents  # noqa: E402 -- after the path to it
from real_command import run  # noqa: E402
from secure_nodes import Place, SecureNodes  # noqa: E402

from raftkv.client import RaftkvError  # noqa: E402
from raftkv.storage.wal_format import SECTOR_BYTES  # noqa: E402
from raftkv.testing.ports import PortReservation  # noqa: E402
from raftkv.testing.processes import NodeProcess  # noqa: E402

NAMES = ("n1", "n2", "n3")
HOST = "127.0.0.1"
DISK_BYTES = 96 * 2**20
SCRAPE_S = 3
"""More than the 2 s after which a node says that its engine does not answer."""
PATIENCE_S = 240
"""More than the longest of the scaled ranges, after which an alert about what is past clears."""
SCALED_LAG = 100
WRITE_PAUSE_S = 0.005
SYNC_DELAY_US = 200_000
ACKNOWLEDGED_S = 0.3
"""Long enough for one fdatasync, too short for a link to be given up."""
SPOILED = (sys.executable, str(HERE / "spoiled_node.py"))


class Nodes(SecureNodes):
    """The cluster of this test: the data of n2 is on a small disk, and logs are not cut."""

    def node_toml(self, name: str) -> str:
        """See the base class."""
        text = super().node_toml(name)
        if name == "n2":
            text = text.replace('data_dir = "data"', f'data_dir = "{self.disk}/data"')
        return text + (
            "[limits]\nwal_segment_bytes = 1048576\nsnapshot_after_entries = 100000000\n"
        )

    @property
    def disk(self) -> Path:
        """Where n2's small disk is mounted."""
        return self.directory / "disk"

    def restart(self, name: str) -> None:
        """Stop a node, start it, and wait until it is ready."""
        self.processes[name].terminate()
        assert self.processes[name].wait(30)
        self.start(name)

    def start(self, name: str) -> None:
        """Start a node and wait until it is ready."""
        self.processes[name].start()
        config = self.directory / name / "node.toml"
        done = run("ready", "--config", config, "--wait", "60")
        assert done.returncode == 0, done.stderr + self.log(name)


# --- faults ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def node_killed(nodes: Nodes, *names: str) -> Iterator[None]:
    """Nodes that are gone."""
    for name in names or ("n3",):
        nodes.processes[name].kill()
    yield
    for name in names or ("n3",):
        nodes.processes[name].start()
    nodes.wait_ready()


@contextlib.contextmanager
def quorum_killed(nodes: Nodes) -> Iterator[None]:
    """One node of three is left."""
    with node_killed(nodes, "n2", "n3"):
        yield


@contextlib.contextmanager
def engine_frozen(nodes: Nodes) -> Iterator[None]:
    """An engine that hangs while its HTTP workers live."""
    os.kill(nodes.processes["n1"].pid, signal.SIGSTOP)
    yield
    os.kill(nodes.processes["n1"].pid, signal.SIGCONT)
    nodes.wait_ready()


@contextlib.contextmanager
def node_frozen(nodes: Nodes) -> Iterator[None]:
    """A follower that takes nothing while its connections stand."""
    nodes.processes["n3"].signal_group(signal.SIGSTOP)
    yield
    nodes.processes["n3"].signal_group(signal.SIGCONT)
    nodes.wait_ready()


@contextlib.contextmanager
def leaders_moving(nodes: Nodes) -> Iterator[None]:
    """Leadership that is handed on all the time."""
    stop = threading.Event()

    def move() -> None:
        with nodes.client() as client:
            for target in itertools.cycle(NAMES):
                if stop.wait(0.5):
                    return
                with contextlib.suppress(RaftkvError):
                    client.transfer_leader(0, target)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        yield
    finally:
        stop.set()
        mover.join()


@contextlib.contextmanager
def slow_disk(nodes: Nodes) -> Iterator[None]:
    """An fdatasync that takes a fifth of a second, by strace."""
    inject = f"inject=fdatasync:delay_exit={SYNC_DELAY_US}"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", inject]
    with subprocess.Popen([*command, "-p", str(nodes.processes["n1"].pid)]) as strace:  # noqa: S603
        try:
            yield
        finally:
            strace.send_signal(signal.SIGINT)  # it lets go of the node
    nodes.wait_ready()


@contextlib.contextmanager
def full_disk(nodes: Nodes) -> Iterator[None]:
    """A disk that somebody else fills up to the last twentieth."""
    facts = os.statvfs(nodes.disk)
    filler = nodes.disk / "filler"
    with filler.open("wb") as out:
        os.posix_fallocate(out.fileno(), 0, facts.f_bavail * facts.f_frsize - DISK_BYTES // 20)
    yield
    filler.unlink()


@contextlib.contextmanager
def short_certificate(nodes: Nodes) -> Iterator[None]:
    """A certificate for one more day."""
    renew(nodes, "--days", "1")
    yield
    renew(nodes)


def renew(nodes: Nodes, *options: str) -> None:
    """Make a new certificate for n1 and have it used."""
    done = run("certs", "--out", nodes.certs, f"--node=n1={HOST}", *options)
    assert done.returncode == 0, done.stderr
    nodes.restart("n1")


@contextlib.contextmanager
def spoiled_replica(nodes: Nodes) -> Iterator[None]:
    """A follower that applies something else than its leader; only a restart mends its state."""
    good = nodes.processes["n3"]
    good.terminate()
    assert good.wait(30)
    nodes.processes["n3"] = NodeProcess("n3", good.config, good.log, SPOILED)
    nodes.start("n3")
    with nodes.client() as client:
        keys = (f"spoil/{number}" for number in range(1000))
        key = next(key for key in keys if client.explain(key)["preferred_leader"] != "n3")
        client.put(key, b"what the others have")
    yield
    nodes.processes["n3"].terminate()
    assert nodes.processes["n3"].wait(30)
    nodes.processes["n3"] = good
    nodes.start("n3")


@contextlib.contextmanager
def rotten_log(nodes: Nodes) -> Iterator[None]:
    """A follower's disk that loses the last sector of its log, as if it had never been written."""
    follower, others = nodes.processes["n3"], [nodes.processes[name] for name in ("n1", "n2")]
    for other in others:
        other.signal_group(signal.SIGSTOP)
    time.sleep(ACKNOWLEDGED_S)  # it gets nothing new, and its last unit is not in flight any more
    follower.kill()
    for other in others:
        other.signal_group(signal.SIGCONT)
    segment = max((nodes.data("n3") / "wal").iterdir(), key=lambda path: path.stat().st_mtime)
    content = segment.read_bytes()
    last = len(content.rstrip(b"\0")) - 1
    with segment.open("r+b") as log:
        log.seek(last // SECTOR_BYTES * SECTOR_BYTES)
        log.write(bytes(SECTOR_BYTES))
    nodes.start("n3")
    yield


@contextlib.contextmanager
def odd_map(nodes: Nodes) -> Iterator[None]:
    """A node that was set up with another number of replicas."""
    node, data = nodes.processes["n3"], nodes.data("n3")
    node.terminate()
    assert node.wait(30)
    right = node.config.read_text()
    node.config.write_text(right.replace("replicas = 3", "replicas = 2"))
    kept = data.rename(data.with_name("kept"))
    done = run("init", "--config", node.config)
    assert done.returncode == 0, done.stderr
    node.start()
    yield
    node.terminate()
    assert node.wait(30)
    node.config.write_text(right)
    shutil.rmtree(data)
    kept.rename(data)
    nodes.start("n3")


@contextlib.contextmanager
def sessions_without_end(nodes: Nodes) -> Iterator[None]:
    """A client with a session for every write, of which one shard takes 40,000 from it."""
    context = ssl.create_default_context(cafile=nodes.ca)
    headers = {
        "Authorization": f"Bearer {nodes.tokens['write']}",
        "Content-Type": "application/json",
    }
    born, last = time.time_ns() // 1000, 0
    for batch in range(10):
        puts = [
            {
                "op": "put",
                "key": "{tag}/k",
                "value": "",
                "session": {"id": f"{batch}.{number}", "sequence": 1, "low": 1, "born": born},
            }
            for number in range(8_000)
        ]
        body = json.dumps({"operations": puts}).encode()
        request = urllib.request.Request(  # noqa: S310 -- https
            f"{nodes.url('n1')}/v1/batch", body, {**headers, "Raftkv-Timeout-Ms": "30000"}
        )
        with urllib.request.urlopen(request, context=context) as answer:  # noqa: S310
            results = json.load(answer)["results"]
        last = sum(result.get("code") == "share_full" for result in results)
        if last:
            break
    assert last, "nothing was refused"
    yield


Fault = Callable[[Nodes], AbstractContextManager[None]]
FAULTS: tuple[tuple[str, str, Fault], ...] = (
    ("RaftkvNodeDown", "kill -9 of one node of three", node_killed),
    ("RaftkvShardOneFailureFromLosingQuorum", "kill -9 of one node of three", node_killed),
    ("RaftkvShardWithoutLeader", "kill -9 of two nodes of three", quorum_killed),
    ("RaftkvShardLostQuorum", "kill -9 of two nodes of three", quorum_killed),
    ("RaftkvEngineDown", "SIGSTOP of an engine, its HTTP workers go on", engine_frozen),
    ("RaftkvReplicaLags", "SIGSTOP of a node under load", node_frozen),
    ("RaftkvFrequentElections", "a transfer of leadership every half second", leaders_moving),
    ("RaftkvPeerRefused", "a node that was set up with other `replicas`", odd_map),
    ("RaftkvSlowFdatasync", "every fdatasync of a node takes 0.2 s longer", slow_disk),
    ("RaftkvEntriesLost", "a follower's disk loses the last sector of its log", rotten_log),
    ("RaftkvIdempotencyFull", "a client with a session for every write", sessions_without_end),
    ("RaftkvDiskLow", "another file fills the disk up to 5 %", full_disk),
    ("RaftkvCertificateEnds", "a certificate for one day, node restarted", short_certificate),
    ("RaftkvDigestMismatch", "a replica that applies another value", spoiled_replica),
)


# --- Prometheus -----------------------------------------------------------------------------------


class Prometheus:
    """A Prometheus that scrapes the cluster by the deployed configuration, scaled."""

    def __init__(self, directory: Path, nodes: Nodes, port: int) -> None:
        self._url = f"http://{HOST}:{port}"
        config = documents(DEPLOY / "prometheus" / "prometheus.yml")[0]
        config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": "1s"}
        (job,) = config["scrape_configs"]
        job["tls_config"]["ca_file"] = nodes.ca
        job["authorization"]["credentials_file"] = str(directory / "token")
        (targets,) = job["static_configs"]
        targets["targets"] = [f"{HOST}:{place.http_port}" for place in nodes.places.values()]
        (directory / "token").write_text(nodes.tokens["read"])
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        (directory / "alerts.yml").write_text(yaml.safe_dump(scaled_rules()))
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(  # noqa: S603 -- as configured above
            [
                _program("prometheus"),
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={HOST}:{port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def firing(self) -> set[str]:
        """The alerts that fire now."""
        with urllib.request.urlopen(f"{self._url}/api/v1/alerts", timeout=5) as answer:  # noqa: S310
            alerts = json.load(answer)["data"]["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def targets_up(self) -> int:
        """How many nodes its scrapes reach."""
        query = f"{self._url}/api/v1/query?query=sum(up)"
        try:
            with urllib.request.urlopen(query, timeout=5) as answer:  # noqa: S310
                result = json.load(answer)["data"]["result"]
        except OSError:
            return 0  # it is just starting
        return int(float(result[0]["value"][1])) if result else 0


def scaled_rules() -> Any:
    """The rules as they are deployed, with a tenth of their times and a hundredth of the lag."""
    rules = documents(DEPLOY / "prometheus" / "alerts.yml")[0]
    for rule in rules["groups"][0]["rules"]:
        if "for" in rule:
            rule["for"] = f"{max(SCRAPE_S, seconds(rule['for']) // 10)}s"
        rule["expr"] = re.sub(
            r"\[(\d+m)\]", lambda found: f"[{seconds(found[1]) // 10}s]", rule["expr"]
        ).replace("> 10000", f"> {SCALED_LAG}")
    return rules


def seconds(text: str) -> int:
    """A duration as Prometheus writes it."""
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is missing: run tests/install-tools"
    return found


# --- the run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What became of one alert."""

    alert: str
    fault: str
    fired_s: float | None
    cleared_s: float | None
    others: frozenset[str]

    @property
    def row(self) -> str:
        """As a row of the table."""
        fired = "**never**" if self.fired_s is None else f"{self.fired_s:.0f} s"
        cleared = "**never**" if self.cleared_s is None else f"{self.cleared_s:.0f} s"
        others = ", ".join(sorted(self.others)).replace("Raftkv", "") or "-"
        return f"| `{self.alert}` | {self.fault} | {fired} | {cleared} | {others} |"


def watch(prometheus: Prometheus, nodes: Nodes, alert: str, what: str, fault: Fault) -> Seen:
    """Inflict one fault, mend it, and see one alert fire and clear."""
    others: set[str] = set()
    with fault(nodes):
        fired_s = waited(lambda: alert in prometheus.firing())
        others |= prometheus.firing() - {alert}
    cleared_s = waited(lambda: alert not in prometheus.firing())
    waited(lambda: not prometheus.firing())
    return Seen(alert, what, fired_s, cleared_s, frozenset(others))


def waited(condition: Callable[[], bool]) -> float | None:
    """How long it took until the condition held; None if it did not."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > PATIENCE_S:
            return None
        time.sleep(0.2)
    return time.monotonic() - began


@contextlib.contextmanager
def load(nodes: Nodes) -> Iterator[None]:
    """A client that writes all the time, whatever happens to the nodes."""
    stop = threading.Event()

    def write() -> None:
        with nodes.client(role="write", timeout_s=5) as client:
            for number in itertools.count():
                if stop.wait(WRITE_PAUSE_S):
                    return
                with contextlib.suppress(RaftkvError):
                    client.put(f"load/{number % 100}", str(number))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """A file system of its own."""
    directory.mkdir()
    options = ("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(directory))
    subprocess.run(["mount", *options], check=True)  # noqa: S603, S607
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)  # noqa: S603, S607


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run all, or the alerts that are named in the arguments."""
    wanted = [fault for fault in FAULTS if not sys.argv[1:] or fault[0] in sys.argv[1:]]
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raftkv-alerts-")))
        ports = PortReservation(7)
        stack.callback(ports.release)
        (directory / "prometheus").mkdir()
        nodes = Nodes(
            directory,
            {
                name: Place(HOST, ports.ports[number], ports.ports[number + 3])
                for number, name in enumerate(NAMES)
            },
        )
        stack.enter_context(small_disk(nodes.disk))
        stack.enter_context(nodes)
        nodes.wait_ready()
        prometheus = Prometheus(directory / "prometheus", nodes, ports.ports[6])
        stack.callback(prometheus.stop)
        stack.enter_context(load(nodes))
        assert waited(lambda: prometheus.targets_up() == len(NAMES)) is not None
        assert waited(lambda: not prometheus.firing()) is not None
        say(f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {len(NAMES)} nodes, scrape every {SCRAPE_S} s\n")
        say("| alert | fault | fired after | cleared after | fired beside it |")
        say("| --- | --- | --- | --- | --- |")
        seen = []
        for fault in wanted:
            seen.append(watch(prometheus, nodes, *fault))
            say(seen[-1].row)
    return int(any(None in (one.fired_s, one.cleared_s) for one in seen))


if __name__ == "__main__":
    sys.exit(main())
