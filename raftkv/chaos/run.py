"""A run from its start to its verdict.

::

    DIR/again           the command that makes this run again
    DIR/plan            the rounds of faults, as the seed has decided them
    DIR/history.jsonl   what the clients asked and were told
    DIR/events.jsonl    faults and changes of leaders, by the same clock
    DIR/logs/           what the nodes said, and their configurations
    DIR/report.html     all of it to look at
    DIR/run.json        verdict, findings and counts, for scripts
    DIR/cluster/        the nodes' files; only after a violation
"""

import contextlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from raftkv.chaos.errors import ChaosError
from raftkv.chaos.judge import Judgement, judge, report
from raftkv.chaos.load import Load, LoadProcess
from raftkv.chaos.nemesis import WATCH_S, Nemesis
from raftkv.chaos.observer import Observer
from raftkv.chaos.plan import Round, plan
from raftkv.chaos.play import play
from raftkv.chaos.recorder import EventLog, ProcessRecorder, Recorder
from raftkv.chaos.remote_target import RemoteTarget
from raftkv.chaos.settings import Settings
from raftkv.chaos.store import Store
from raftkv.chaos.target import Nodes, Target
from raftkv.check.history import HistoryWriter
from raftkv.check.verdict import Verdict
from raftkv.client import RaftkvError
from raftkv.testing import ClusterError
from raftkv.testing.layout import LayoutError
from raftkv.version import __version__
from raftkv.workloads import final_reads
from raftkv.workloads.keys import RotatingKeys
from raftkv.workloads.steps import Context, Steps

FINAL_KEYS = tuple(f"final/{number}" for number in range(64))
"""Enough that every shard has some."""

FINAL_READ_ATTEMPTS = 20
FINAL_READ_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    phase: str
    elapsed_s: float
    duration_s: float
    counts: Mapping[str, int]
    """Operations that ended ``ok``, ``fail`` and ``info``, and those that were an ``error``."""
    faults: int
    effective: int
    running: tuple[str, ...]
    """What is done to the target now."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is left of a run that came to its end."""

    judgement: Judgement
    counts: Mapping[str, int]
    faults: Mapping[str, int]
    effective: Mapping[str, int]
    leader_changes: int
    under_way_max: int
    """The most operations that were under way at one moment."""
    report: Path

    @property
    def verdict(self) -> Verdict:
        """Valid, violation or unknown."""
        return self.judgement.verdict


def planned(settings: Settings, names: tuple[str, ...]) -> tuple[Round, ...]:
    """The faults of a run, for a cluster with these nodes."""
    return plan(
        settings.seed,
        settings.faults if settings.hurts else (),
        names,
        settings.shards if settings.system == "raftkv" else 1,
        election_timeout_s=settings.election_timeout_ms / 1000,
        duration_s=settings.duration_s,
    )


def run_chaos(settings: Settings, show: Callable[[Progress], None] = lambda _: None) -> Run:
    """Run it and judge it.

    Must be called in a thread that lives as long as the run: nodes end with it.

    Raises:
        ChaosError: It cannot be run; one line that says what to do.
    """
    settings.check()
    again = shlex.join(settings.arguments())
    try:
        target = settings.target()
        if isinstance(target, RemoteTarget):
            target.check()  # before anything is made: the same command can be given again
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "again").write_text(again + "\n", encoding="utf-8")
        work = _Work(settings, target, show)
        work.run()
    except (ClusterError, LayoutError, OSError) as error:
        raise ChaosError(f"{error}") from error
    return work.conclude(again)


@dataclass(slots=True)
class _Work:
    """A run under way."""

    settings: Settings
    target: Nodes | RemoteTarget
    show: Callable[[Progress], None]
    findings: list[str] = field(default_factory=list)
    phase: str = "starting"
    came_back: bool = True
    """Whether the cluster was as before after each round of faults."""
    started_s: float = 0.0
    title: str = ""
    recorder: Recorder = field(init=False)
    events: EventLog = field(init=False)

    @property
    def out(self) -> Path:
        return self.settings.out

    def run(self) -> None:
        """Start the target, have clients and faults at it, heal it, read everything."""
        with contextlib.ExitStack() as stack:
            history = stack.enter_context(HistoryWriter(self.out / "history.jsonl"))
            self.recorder = Recorder(history)
            self.events = stack.enter_context(EventLog(self.out / "events.jsonl"))
            target = self.target
            self.title = target.title
            stack.callback(self._clean_up, target)
            target.start()
            observer = stack.enter_context(Observer(target, self.events))
            random = Random(f"{self.settings.seed} workload")  # noqa: S311 -- a seed
            keys = RotatingKeys(random, self.settings.active_keys)
            self._hurt_under_load(target, observer, keys)
            self._read_all(target, keys)
            self._write_everywhere(target)
            if self.came_back:
                self.phase = "comparing replicas"
                self._tick()
                self.findings += target.disagreements()

    def _hurt_under_load(
        self, target: Nodes | RemoteTarget, observer: Observer, keys: RotatingKeys
    ) -> None:
        settings = self.settings
        rounds = planned(settings, target.names)
        text = "".join(f"{line}\n" for line in (f"seed {settings.seed}", *rounds))
        (self.out / "plan").write_text(text, encoding="utf-8")
        load = Load(
            target.connect,
            settings.workloads,
            keys,
            self.recorder,
            clients=settings.clients,
            rate_per_s=settings.rate_per_s,
            seed=settings.seed,
        )
        self.phase, self.started_s = "running", time.monotonic()
        with load:
            if not isinstance(target, RemoteTarget):
                self._do_rounds(target, observer, rounds)
            self._wait_for_the_end()
            self.phase = "stopping clients"
            self._tick()
        if load.unanswered:
            self.findings.append(f"{load.unanswered} clients were never answered")
        if load.crashes:
            raise ChaosError(f"a client of the harness broke: {load.crashes[0]!r}")

    def _do_rounds(self, target: Nodes, observer: Observer, rounds: tuple[Round, ...]) -> None:
        nemesis = Nemesis(
            target,
            observer.leader_of,
            self.events,
            self._tick,
            self.findings,
            recover_s=self.settings.recover_s,
        )
        # Of a cluster that did not come back more faults would tell nothing.
        self.came_back = all(nemesis.run(round_) for round_ in rounds)

    def _wait_for_the_end(self) -> None:
        while self._elapsed_s() < self.settings.duration_s:
            self._tick()
            time.sleep(WATCH_S)

    def _read_all(self, target: Target, keys: RotatingKeys) -> None:
        """Read every key; after all is healed each read must succeed."""
        self.phase = "reading all keys"
        self._tick()
        store = target.connect(0)
        recorder = self.recorder.process(self.settings.clients, final=True)
        reader = LoadProcess(self.settings.clients, Random(0))  # noqa: S311 -- reads draw nothing
        for key, read in final_reads(reader, Context(recorder, keys)):
            self._read(key, read, recorder, store)
        store.close()

    def _read(
        self, key: str, read: Callable[[], Steps], recorder: ProcessRecorder, store: Any
    ) -> None:
        for _ in range(FINAL_READ_ATTEMPTS):
            play(read(), store)
            status, fields = recorder.last
            if status == "ok":
                return
            time.sleep(FINAL_READ_PAUSE_S)
        self.findings.append(f"key {key} could not be read in the end: {fields.get('error')}")

    def _write_everywhere(self, target: Target) -> None:
        """Write keys all over the ring; after all is healed each write must succeed.

        Reads prove little of a shard that refuses every write, and most histories of refusals are
        valid.
        """
        if not self.recorder.counts["ok"]:
            self.findings.append("no operation of any client succeeded")
        if not self.came_back:
            return
        store = target.connect(0)
        refused = next((key for key in FINAL_KEYS if not _writes(store, key)), None)
        store.close()
        if refused is not None:
            self.findings.append(f"key {refused} could not be written in the end")

    def _clean_up(self, target: Target) -> None:
        logs = self.out / "logs"
        logs.mkdir(exist_ok=True)
        target.close()
        target.keep_logs(logs)

    def conclude(self, again: str) -> Run:
        """Judge, report, and throw away what nobody needs to look at."""
        self.phase = "judging"
        self._tick()
        judgement = judge(self.out / "history.jsonl", self.findings)
        facts = {
            "seed": str(self.settings.seed),
            "run it again": again,
            "version": f"raftkv {__version__}",
            "clients": f"{self.settings.clients}, {self.settings.rate_per_s:g} operations/s",
        }
        page = report(judgement, self.out, f"{self.title}: {self.settings.workload}", facts)
        run = Run(
            judgement,
            dict(self.recorder.counts),
            dict(self.events.started),
            dict(self.events.effective),
            self.events.leader_changes,
            self.recorder.under_way_max,
            page,
        )
        _summarize(run, self.settings, self.out / "run.json")
        if run.verdict is Verdict.VALID:
            shutil.rmtree(self.out / "cluster", ignore_errors=True)
        return run

    def _elapsed_s(self) -> float:
        return time.monotonic() - self.started_s if self.started_s else 0.0

    def _tick(self) -> None:
        self.show(
            Progress(
                self.phase,
                self._elapsed_s(),
                self.settings.duration_s,
                dict(self.recorder.counts),
                sum(self.events.started.values()),
                sum(self.events.effective.values()),
                tuple(self.events.running.values()),
            )
        )


def _writes(store: Store, key: str) -> bool:
    """Whether a key can be written, at one of several attempts."""
    for _ in range(FINAL_READ_ATTEMPTS):
        try:
            store.put(key, b"written in the end")
        except RaftkvError:
            time.sleep(FINAL_READ_PAUSE_S)
        else:
            return True
    return False


def _summarize(run: Run, settings: Settings, path: Path) -> None:
    document = {
        "verdict": run.verdict.value,
        "reasons": run.judgement.reasons,
        "seed": settings.seed,
        "workload": settings.workload,
        "version": __version__,
        "operations": run.counts,
        "keys": len(run.judgement.result.parts),
        "faults": run.faults,
        "effective": run.effective,
        "leader_changes": run.leader_changes,
        "under_way_max": run.under_way_max,
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
