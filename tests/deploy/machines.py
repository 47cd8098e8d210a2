"""Machines of their own addresses: network namespaces joined by a bridge in one more.

Nothing of it touches the machine's own network, and removing the namespaces removes it all.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

HUB = "hub"
NETWORK = "10.213.7"
TIMEOUT_S = 30


def ip(*arguments: str) -> None:
    """Change the network.

    Raises:
        AssertionError: ``ip`` says that it cannot.
    """
    command = ["ip", *arguments]
    done = subprocess.run(  # noqa: S603 -- ours
        command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"


@dataclass
class Machines:
    """Names, addresses and cables of machines that live until the context ends."""

    names: Sequence[str]
    tag: str = field(default_factory=lambda: f"rkv{os.getpid()}")

    def inside(self, name: str) -> tuple[str, ...]:
        """What to put before a command that is to run on a machine, or on the hub."""
        return ("ip", "netns", "exec", self._namespace(name))

    def address(self, name: str) -> str:
        """The address of a machine."""
        return f"{NETWORK}.{self.names.index(name) + 1}"

    def cut(self, name: str) -> None:
        """Pull a machine's cable: packets vanish, and nobody is told."""
        ip("-n", self._namespace(HUB), "link", "set", f"to{name}", "down")

    def mend(self, name: str) -> None:
        """Plug it in again."""
        ip("-n", self._namespace(HUB), "link", "set", f"to{name}", "up")

    def _namespace(self, name: str) -> str:
        return f"{self.tag}{name}"

    def plug_in(self, name: str) -> None:
        """Give a machine its cable to the bridge."""
        hub, machine, cable = self._namespace(HUB), self._namespace(name), f"to{name}"
        ip("-n", hub, "link", "add", cable, "type", "veth", "peer", "eth0", "netns", machine)
        ip("-n", hub, "link", "set", cable, "master", "bridge", "up")
        ip("-n", machine, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        ip("-n", machine, "link", "set", "eth0", "up")


@contextlib.contextmanager
def machines(*names: str) -> Iterator[Machines]:
    """Make machines, and remove them whatever happens."""
    made = Machines(names)
    with contextlib.ExitStack() as remove:
        for name in (HUB, *names):
            namespace = made.inside(name)[-1]
            ip("netns", "add", namespace)
            remove.callback(ip, "netns", "del", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        hub = made.inside(HUB)[-1]
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "addr", "add", f"{NETWORK}.100/24", "dev", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for name in names:
            made.plug_in(name)
        yield made
