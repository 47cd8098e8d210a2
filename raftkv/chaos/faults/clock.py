"""Faults of the wall clock, which must not matter: the monotonic clock is left alone."""

import time

from raftkv.chaos.faults.base import Fault

JUMP_S = (60, 86_400)
_US_PER_S = 1_000_000


class ClockJump(Fault):
    """Wall clocks jump by a minute to a day, and back again in the end."""

    def start(self) -> None:
        """Set one clock forward or back, or all of them apart."""
        self.victims = self.free_nodes() if self.variant == "apart" else self.free_nodes()[:1]
        self._jumps_s = {name: self._draw() for name in self.victims}
        shown = ", ".join(f"{name} {jump:+d} s" for name, jump in self._jumps_s.items())
        self.detail = f"{self.variant}: {shown}"
        for name, jump_s in self._jumps_s.items():
            self.context.raftkv.set_clock(name, jump_s)

    def _draw(self) -> int:
        size = self.random.randint(*JUMP_S)
        signs = {"forward": (1,), "back": (-1,)}.get(self.variant, (1, -1))
        return size * self.random.choice(signs)

    def observe(self) -> None:
        """A node's own account of the time has moved by most of the jump."""
        if self.effective:
            return
        for name, jump_s in self._jumps_s.items():
            facts = self.context.raftkv.facts(name)
            if facts is None:
                continue
            off_s = facts["as_of_us"] / _US_PER_S - time.time()
            if abs(off_s - jump_s) < abs(jump_s) / 2:
                self.effective = True

    def stop(self) -> None:
        """Set all clocks right, which is a jump too."""
        for name in self.victims:
            self.context.raftkv.set_clock(name, 0)
