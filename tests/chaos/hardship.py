"""An hour of hardship: ``python tests/chaos/hardship.py --minutes 60`` (as root, for small disks).

Three real nodes and their clients, in one stage after the other: logs that nobody takes, disks that
fill up and are emptied, few descriptors, many shards, large values. Every request must end as
answered, refused or of unknown outcome within its time-out, and nothing else. Then the cluster must
be whole: every node ready, replicas equal, every acknowledged write there, the history
linearizable, no process ended, no alarm, memory within its limits. The first stage with a broken
promise ends it with exit code 1 and leaves its directory.
"""

import argparse
import contextlib
import json
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, Self

import msgspec
from hardship_evidence import Evidence, alarms, broken, longest_wait_s, table
from hardships import STAGES, WHOLE_S, PatientCluster, Stage, Trial

from raftkv.bench.measures.abuse import GROWTH_BYTES_MAX
from raftkv.bench.processes import resident_bytes, workers_of
from raftkv.chaos.agreement import disagreements
from raftkv.chaos.disks import private_mounts
from raftkv.chaos.judge import judge
from raftkv.chaos.load import Load, LoadProcess
from raftkv.chaos.play import play
from raftkv.chaos.recorder import Recorder
from raftkv.chaos.run import FINAL_KEYS, FINAL_READ_ATTEMPTS, FINAL_READ_PAUSE_S
from raftkv.chaos.store import Store
from raftkv.chaos.waiting import wait_until
from raftkv.check.history import HistoryWriter, read_history
from raftkv.check.verdict import Verdict
from raftkv.client import Client, KeyValue, PutResult, RaftkvError
from raftkv.client.answers import Answer
from raftkv.client.transport import Transport
from raftkv.client.types import Bytes, to_bytes
from raftkv.engine.config import LimitOptions
from raftkv.testing import ClusterError, LocalCluster
from raftkv.workloads import final_reads
from raftkv.workloads.keys import RotatingKeys
from raftkv.workloads.steps import Context

WATCH_S = 1.0
SNAPSHOT_AFTER_BYTES = LimitOptions().snapshot_after_bytes
ONCE_ONLY_EVERY = 3
"""One client in so many sends nothing twice; the others repeat in a session."""


class WitnessedTransport(Transport):
    """Counts what nodes answer to single attempts, also those that a client repeats."""

    def __init__(self, answers: Counter[tuple[int, str]], connect_timeout_s: float) -> None:
        super().__init__(ca=None, connections=1, connect_timeout_s=connect_timeout_s)
        self._answers = answers

    def send(self, *arguments: Any, **settings: Any) -> Answer:
        """Send one request and count the answer."""
        answer = super().send(*arguments, **settings)
        self._answers[answer.status, code_of(answer)] += 1
        return answer


def code_of(answer: Answer) -> str:
    """The code of a problem document; empty if it is none."""
    if answer.status < 400:
        return ""
    try:
        document = msgspec.json.decode(answer.body)
        return str(document["code"]) if isinstance(document["definite"], bool) else ""
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""


class PaddedStore:
    """A client whose values are as large as is wanted: dots, which a register ignores, behind."""

    def __init__(self, client: Store, value_bytes: int) -> None:
        self._client = client
        self._value_bytes = value_bytes
        self.txn = client.txn
        self.scan = client.scan
        self.delete = client.delete
        self.close = client.close

    def get(self, key: Bytes) -> KeyValue | None:
        """Read one key.

        Raises:
            TornValueError: Its value is not as long as all that were written.
        """
        entry = self._client.get(key)
        if entry is not None and len(entry.value) != self._value_bytes:
            raise TornValueError(f"{len(entry.value)} bytes of {self._value_bytes}")
        return entry

    def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        if_revision: int | None = None,
        if_absent: bool = False,
    ) -> PutResult:
        """Set one key."""
        padded = to_bytes(value).ljust(self._value_bytes, b".")
        return self._client.put(key, padded, if_revision=if_revision, if_absent=if_absent)


class TornValueError(RaftkvError):
    """A value was read that nobody has written."""


def memory_max(shards: int, *, held: int, written: int) -> Mapping[str, int]:
    """How many bytes a process may take beyond those of its start.

    ``held`` and ``written`` are the bytes of all values that are there, and that ever were.

    A worker holds bodies and answers (docs/http-api.md, limits). An engine has values twice while a
    snapshot is written, what waits for others (docs/architecture.md, bounds), and each log up to
    its next snapshot, which takes a while.
    """
    logs = min(written, 2 * SNAPSHOT_AFTER_BYTES * shards)
    return {
        "worker": 2 * GROWTH_BYTES_MAX["worker"],
        "engine": GROWTH_BYTES_MAX["engine"] + 2 * held + logs,
    }


class Watch:
    """Looks at the nodes' processes all the time: how large they grow, and whether they end."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._workers: dict[int, set[int]] = {}
        self._lost: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.peak: dict[str, int] = {"engine": 0, "worker": 0}
        self.ended: list[str] = []

    def __enter__(self) -> Self:
        self._look()
        self.start = dict(self.peak)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(WATCH_S):
            self._look()

    def _look(self) -> None:
        for name in self._cluster.names:
            engine = self._cluster.pid(name)
            workers = set(workers_of(engine))
            for kind, pids in (("engine", {engine}), ("worker", workers)):
                for pid in pids:
                    # One that has just ended has no memory.
                    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                        self.peak[kind] = max(self.peak[kind], resident_bytes(pid))
            # A killed engine may be gone a moment after its workers: that it lives is seen later.
            lost = self._lost.pop(name, None)
            if lost == engine and self._cluster.process(name).is_running:
                self.ended.append(f"a worker of {name} ended by itself")
            if self._workers.get(engine, set()) - workers:
                self._lost[name] = engine
            self._workers[engine] = workers


class Run:
    """One stage, from its cluster's start to its verdict."""

    def __init__(self, stage: type[Stage], seconds: float, out: Path, seed: int) -> None:
        self._stage = stage()
        self._seconds = seconds
        self._out = out
        self._seed = seed
        self.evidence = Evidence(stage.name, stage.timeout_s)
        self.evidence.hardships.update(dict.fromkeys(stage.hardships, 0))

    def run(self) -> Evidence:
        """Run it and judge it."""
        evidence, stage = self.evidence, self._stage
        self._out.mkdir(parents=True)
        cluster = PatientCluster(
            self._out / "cluster",
            shards=stage.shards,
            options=stage.options,
            ready_timeout_s=WHOLE_S,
            command=stage.command,
        )
        history = self._out / "history.jsonl"
        trial = Trial(cluster, evidence, Random(self._seed))
        with trial.stack, HistoryWriter(history) as writer:
            cluster.prepare()
            stage.prepare(trial)
            trial.stack.callback(cluster.stop)
            try:
                for name in cluster.names:
                    cluster.start_node(name)
                cluster.wait_ready()
                self._work(trial, Recorder(writer))
            except (ClusterError, RaftkvError) as error:
                evidence.findings.append(f"{error}")
        self._count(history)
        evidence.findings += _told(history)
        if not broken(evidence):
            shutil.rmtree(self._out)
        return evidence

    def _work(self, trial: Trial, recorder: Recorder) -> None:
        evidence, stage, cluster = self.evidence, self._stage, trial.cluster
        keys = RotatingKeys(Random(self._seed), stage.keys)
        load = Load(
            lambda number: self._connect(cluster, number),
            ["register"],
            keys,
            recorder,
            clients=stage.clients,
            rate_per_s=stage.rate_per_s,
            seed=self._seed,
        )
        began = time.monotonic()
        trial.deadline = began + self._seconds
        with Watch(cluster) as watch:
            with load:
                stage.hurt(trial)
            evidence.seconds = time.monotonic() - began
            if load.unanswered:
                evidence.findings.append(f"{load.unanswered} clients were never answered")
            evidence.findings += [f"a client broke: {crash!r}" for crash in load.crashes]
            self._make_sure_that_it_is_whole(cluster, keys, recorder)
        evidence.findings += watch.ended
        most = memory_max(
            stage.shards,
            held=len(recorder.keys("register")) * stage.value_bytes,
            written=(recorder.counts["ok"] + recorder.counts["unknown"]) * stage.value_bytes,
        )
        evidence.memory = {
            kind: (peak, watch.start[kind] + most[kind]) for kind, peak in watch.peak.items()
        }

    def _connect(self, cluster: LocalCluster, number: int) -> Store:
        """Every other client knows one node only, so that all nodes are asked for all keys."""
        urls = cluster.urls if number % 2 else (cluster.urls[number // 2 % len(cluster.urls)],)
        client = Client(
            urls,
            timeout_s=self._stage.timeout_s,
            attempt_timeout_s=self._stage.attempt_s,
            idempotent=number % ONCE_ONLY_EVERY != ONCE_ONLY_EVERY - 1,
        )
        connect_s = self._stage.attempt_s / 2
        client._caller._transport = WitnessedTransport(self.evidence.answers, connect_s)
        return PaddedStore(client, self._stage.value_bytes)

    def _make_sure_that_it_is_whole(
        self, cluster: LocalCluster, keys: RotatingKeys, recorder: Recorder
    ) -> None:
        findings = self.evidence.findings
        cluster.wait_ready(WHOLE_S)
        store = self._connect(cluster, 1)
        process = recorder.process(self._stage.clients, final=True)
        reader = LoadProcess(self._stage.clients, Random(0))
        for key, read in final_reads(reader, Context(process, keys)):
            for _ in range(FINAL_READ_ATTEMPTS):
                play(read(), store)
                status, fields = process.last
                if status == "ok":
                    break
                time.sleep(FINAL_READ_PAUSE_S)
            else:
                findings.append(f"{key} could not be read: {fields.get('error')}")
        store.close()
        for name in cluster.names:
            with Client(cluster.node(name).url, timeout_s=WHOLE_S) as client:
                for key in FINAL_KEYS:
                    client.put(key, name)
        seen: list[str] = []
        if not wait_until(lambda: not _alarms(cluster, seen), WHOLE_S, poll_s=1.0):
            findings += seen
        with cluster.client(timeout_s=10) as client:
            findings += disagreements(client, shards=self._stage.shards)

    def _count(self, history: Path) -> None:
        with history.open(encoding="utf-8") as lines:
            events = map(json.loads, lines)
            self.evidence.longest_wait_s = longest_wait_s(events, time.monotonic_ns())
        self.evidence.count(read_history(history))


def _alarms(cluster: LocalCluster, seen: list[str]) -> list[str]:
    """What is wrong now, also in ``seen``."""
    try:
        with cluster.client(timeout_s=10) as client:
            of_cluster = client.status("cluster")
        of_nodes = []
        for url in cluster.urls:
            with Client(url, timeout_s=10) as client:
                of_nodes.append(client.status("local"))
        seen[:] = alarms(of_cluster, of_nodes)
    except RaftkvError as error:
        seen[:] = [f"the cluster does not say how it is: {error}"]
    return seen


def _told(history: Path) -> list[str]:
    """What is wrong with what the clients were told."""
    judgement = judge(history, ())
    if judgement.verdict is Verdict.VALID:
        return []
    return judgement.reasons or [f"the history is {judgement.verdict.value}"]


def main() -> int:
    """Run all stages; the exit code is 1 at the first that has broken a promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of all stages together")
    parser.add_argument("--only", nargs="*", default=[], help="stages, by parts of their names")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("hardship"))
    asked = parser.parse_args()
    private_mounts()
    stages = [s for s in STAGES if not asked.only or any(part in s.name for part in asked.only)]
    second = asked.minutes * 60 / sum(stage.share for stage in stages)
    done: list[Evidence] = []
    for number, stage in enumerate(stages, start=1):
        out = asked.out / f"{number}-{stage.name.replace(' ', '-')}"
        evidence = Run(stage, stage.share * second, out, asked.seed).run()
        done.append(evidence)
        sys.stdout.write(f"{table(done)}\n\n")
        if reasons := broken(evidence):
            (out / "evidence.txt").write_text(f"{evidence}\n")
            sys.stdout.write(f"{stage.name}: broken, see {out}\n" + "\n".join(reasons) + "\n")
            return 1
        sys.stdout.write(f"{_details(evidence)}\n")
        sys.stdout.flush()
    return 0


def _details(evidence: Evidence) -> str:
    answers = {f"{status} {code}".strip(): n for (status, code), n in evidence.answers.items()}
    memory = {
        kind: f"{peak >> 20} of {most >> 20} MiB" for kind, (peak, most) in evidence.memory.items()
    }
    return f"{evidence.stage}: answers {answers}, errors {dict(evidence.errors)}, memory {memory}\n"


if __name__ == "__main__":
    sys.exit(main())
