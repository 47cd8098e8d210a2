"""The network between simulated machines: its paths, who listens, and who is connected.

See :mod:`raftkv.sim.streams` for one connection.
"""

import errno
import ssl
from collections.abc import Callable
from functools import partial
from random import Random

from raftkv.engine.network import Listener, ProtocolFactory
from raftkv.sim.loop import SimLoop
from raftkv.sim.scheduler import Scheduler
from raftkv.sim.streams import KERNEL_BYTES, Host, Note, Path, SimTransport


class SimListener:
    """A :class:`raftkv.engine.network.Listener`."""

    def __init__(
        self, fabric: "Fabric", host: Host, loop: SimLoop, factory: ProtocolFactory
    ) -> None:
        self.port = 0
        self.host = host
        self.loop = loop
        self.factory = factory
        self._fabric = fabric

    def renew(self, tls: ssl.SSLContext | None) -> None:
        """Nothing: there is no TLS here."""

    async def close(self) -> None:
        """Stop accepting."""
        self._fabric.stop_listening(self)


class StreamNetwork:
    """A :class:`raftkv.engine.network.Network` for one life of one machine's process."""

    def __init__(self, fabric: "Fabric", host: Host, loop: SimLoop) -> None:
        self._fabric = fabric
        self._host = host
        self._loop = loop

    async def connect(
        self, factory: ProtocolFactory, host: str, port: int, tls: ssl.SSLContext | None
    ) -> None:
        """Connect to the machine called ``host``; a port is not needed to find it."""
        del port, tls
        if self._fabric.is_exhausted(self._host):
            raise OSError(errno.EMFILE, "Too many open files")
        await self._fabric.connect(factory, self._host, self._loop, host)

    async def listen(
        self, factory: ProtocolFactory, host: str, port: int, tls: ssl.SSLContext | None
    ) -> Listener:
        """Accept connections."""
        del host, port, tls
        return self._fabric.listen(self._host, self._loop, factory)


class Fabric:
    """All paths and connections between the machines of a world.

    Args:
        note: called with everything that happens, for the trace.
        kernel_bytes: what the kernels of both sides hold of one direction of a connection.
    """

    def __init__(
        self, scheduler: Scheduler, random: Random, note: Note, *, kernel_bytes: int = KERNEL_BYTES
    ) -> None:
        self.kernel_bytes = kernel_bytes
        self.scheduler = scheduler
        self.random = random
        self.note = note
        self._paths: dict[tuple[str, str], Path] = {}
        self._hosts: dict[str, Host] = {}
        self._listeners: dict[str, SimListener] = {}
        self._open: dict[SimTransport, None] = {}
        self._unheard: dict[tuple[str, str], list[Callable[[], None]]] = {}
        self._unaccepted: dict[str, list[Callable[[], object]]] = {}  # by exhausted machines
        self.exhaustions = 0
        """How many connections found no descriptor, to be made or to be accepted."""

    # --- conditions ---------------------------------------------------------------------------

    def add(self, host: Host) -> None:
        """Put a machine on the network."""
        for other in self._hosts:
            self._paths[host.name, other] = Path()
            self._paths[other, host.name] = Path()
        self._hosts[host.name] = host

    def path(self, source: str, target: str) -> Path:
        """What the network does from ``source`` to ``target``; may be changed."""
        return self._paths[source, target]

    def silence(self, source: str, target: str) -> None:
        """Let nothing through in this direction."""
        self._paths[source, target].silent = True
        self.note("silence", source, target)

    def speak(self, source: str, target: str) -> None:
        """End a silence; what was held is retransmitted."""
        path = self._paths[source, target]
        if path.silent:
            path.silent = False
            self.note("speak", source, target)
            for transport in list(self._open):
                if (transport.host.name, transport.remote.name) == (source, target):
                    transport.resume()
            for arrive in self._unheard.pop((source, target), ()):
                self.scheduler.after(path.latency_us(self.random), arrive)

    def send_end(self, source: Host, target: Host, arrive: Callable[[], None]) -> None:
        """Say that nothing more comes; said again after a silence, until it is heard."""
        if self.is_silent(source, target):
            self._unheard.setdefault((source.name, target.name), []).append(arrive)
        else:
            self.scheduler.after(self.latency_us(source, target), arrive)

    def reset(self, one: str, other: str) -> int:
        """Break every connection between two machines; what is on its way is lost.

        Returns:
            How many ends of connections there were.
        """
        self.note("reset", one, other)
        broken = [t for t in self._open if {t.host.name, t.remote.name} == {one, other}]
        for transport in broken:
            transport.lost(ConnectionResetError("connection reset"))
        return len(broken)

    def forget_end(self, one: str, other: str) -> int:
        """Let ``one`` lose its connections to ``other``, which hears nothing, not even a reset.

        Returns:
            How many there were.
        """
        self.note("forget end", one, other)
        ends = [t for t in self._open if (t.host.name, t.remote.name) == (one, other)]
        for near in ends:
            near.other.unheard = True
            near.lost(ConnectionResetError("connection reset"))
        return len(ends)

    def exhaust(self, name: str) -> None:
        """Let a machine have no descriptors for more connections, made or accepted."""
        self.note("exhaust", name)
        self._unaccepted.setdefault(name, [])

    def relieve(self, name: str) -> None:
        """Let it have some again: what its kernel holds is accepted."""
        for accept in self._unaccepted.pop(name, ()):
            accept()

    def is_exhausted(self, host: Host) -> bool:
        """Whether a machine has no descriptor for a connection; counted if so."""
        self.exhaustions += host.name in self._unaccepted
        return host.name in self._unaccepted

    def is_silent(self, source: Host, target: Host) -> bool:
        """Whether nothing gets through; what was to be sent is held, and counted."""
        path = self._paths[source.name, target.name]
        path.held += path.silent
        return path.silent

    def latency_us(self, source: Host, target: Host) -> int:
        """How long the next segment is on its way."""
        return self._paths[source.name, target.name].latency_us(self.random)

    # --- machines -----------------------------------------------------------------------------

    def kill(self, host: Host) -> None:
        """The machine's process died: its kernel closes what it had."""
        self._listeners.pop(host.name, None)
        if host.name in self._unaccepted:
            self._unaccepted[host.name].clear()
        for transport in self._of(host):
            transport.killed()

    def cut_power(self, host: Host) -> None:
        """The machine fell silent."""
        self._listeners.pop(host.name, None)
        if host.name in self._unaccepted:
            self._unaccepted[host.name].clear()
        for transport in self._of(host):
            transport.vanish()

    def power_on(self, host: Host) -> None:
        """The machine answers again; of its old connections it knows nothing."""
        for transport in list(self._open):
            if transport.remote is host:
                transport.resume()

    def _of(self, host: Host) -> list[SimTransport]:
        return [transport for transport in self._open if transport.host is host]

    def forget(self, transport: SimTransport) -> None:
        """A connection's end is gone."""
        self._open.pop(transport, None)

    # --- connections --------------------------------------------------------------------------

    def listen(self, host: Host, loop: SimLoop, factory: ProtocolFactory) -> SimListener:
        """Accept connections to ``host``."""
        if host.name in self._listeners:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        listener = self._listeners[host.name] = SimListener(self, host, loop, factory)
        return listener

    def stop_listening(self, listener: SimListener) -> None:
        """Accept no more."""
        if self._listeners.get(listener.host.name) is listener:
            del self._listeners[listener.host.name]

    async def connect(
        self, factory: ProtocolFactory, source: Host, loop: SimLoop, target: str
    ) -> None:
        """Connect; OSError if nobody listens, no answer at all if nobody can be reached."""
        attempt = _Attempt(self, factory, source, loop, self._hosts[target])
        self.scheduler.after(self.latency_us(source, attempt.remote), attempt.knock)
        await attempt.answered

    def join(self, near: SimTransport, listener: SimListener, answered_us: int) -> None:
        """Make the other end of ``near``, which hears of it then, and give it to who listens."""
        far = SimTransport(self, listener.host, listener.loop, near.host)
        far.expect_nothing_before(answered_us)
        near.other, far.other = far, near
        self._open[near] = self._open[far] = None
        self.note("connect", near.host.name, far.host.name)
        accept = partial(listener.loop.call_soon, lambda: far.connected(listener.factory()))
        if self.is_exhausted(listener.host):
            self._unaccepted[listener.host.name].append(accept)
        else:
            accept()

    def listener(self, host: Host) -> SimListener | None:
        """Who accepts connections at ``host``."""
        return self._listeners.get(host.name)


class _Attempt:
    """A connection that is being made."""

    def __init__(
        self, fabric: Fabric, factory: ProtocolFactory, source: Host, loop: SimLoop, remote: Host
    ) -> None:
        self.answered = loop.create_future()
        self.remote = remote
        self._fabric = fabric
        self._factory = factory
        self._source = source
        self._loop = loop

    def knock(self) -> None:
        """The request arrives at the other kernel, or nowhere."""
        fabric, source, remote = self._fabric, self._source, self.remote
        silent = fabric.is_silent(source, remote) or fabric.is_silent(remote, source)
        if silent or not remote.powered or self._loop.ended:
            return
        listener = fabric.listener(remote)
        back_us = fabric.latency_us(remote, source)
        if listener is None:
            answer: Callable[[], None] = self._refused
        else:
            near = SimTransport(fabric, source, self._loop, remote)
            fabric.join(near, listener, fabric.scheduler.now_us + back_us)
            answer = partial(self._accepted, near)
        fabric.scheduler.after(back_us, self._loop.call_soon, answer)

    def _accepted(self, near: SimTransport) -> None:
        if self.answered.done():  # it was not waited for any longer
            near.abort()
        elif near.gone:
            self.answered.set_exception(ConnectionResetError("reset by peer"))
        else:
            near.connected(self._factory())
            self.answered.set_result(None)

    def _refused(self) -> None:
        if not self.answered.done():
            refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            self.answered.set_exception(refused)
