"""An event loop in simulated time: what a process on a simulated machine runs on.

As in asyncio, what is called soon runs in order, in the next turn. Everything else is for the
simulation to decide: how long a turn takes to come, what arrives before it, whether it ever comes.
Only the part of asyncio's interface is there that the engine uses.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from random import Random
from typing import Any, TypeVar, cast

from raftkv.sim.clock import MachineClock
from raftkv.sim.scheduler import Scheduler, Timer

_TURN_US_MIN = 5
_TURN_US_MORE = 60
"""A turn begins this long after there is something to do: 5 to 65 microseconds."""

_NEXT_AT_ONCE = 0.75
"""Share of turns that follow the one before without anything else happening between."""

_Result = TypeVar("_Result")


class Handle:
    """A callback that waits for its turn; what asyncio calls a Handle."""

    __slots__ = ("_args", "_callback", "_timer")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback: Callable[..., object] | None = callback
        self._args = args
        self._timer: Timer | None = None

    def cancel(self) -> None:
        """Never run it."""
        self._callback, self._args = None, ()
        if self._timer is not None:
            self._timer.cancel()

    def cancelled(self) -> bool:
        """Whether it will never run (again)."""
        return self._callback is None

    def run(self) -> None:
        """Run it, unless it was cancelled."""
        if self._callback is not None:
            self._callback(*self._args)


class SimLoop:
    """The loop of one life of one process.

    Args:
        clock: the machine's clock, by which timers are measured.
        random: decides how long turns take to come.
        failed: called with whatever a callback raises, BaseExceptions too.
        after_turn: called after every turn.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: MachineClock,
        random: Random,
        *,
        failed: Callable[[BaseException], None],
        after_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._random = random.random
        self._failed = failed
        self._after_turn = after_turn
        self._ready: deque[Handle] = deque()
        self._turn_waits = False
        self._unbegun: dict[Coroutine[Any, Any, Any], None] = {}
        self.frozen = False
        """A stopped process: its turns wait, and what arrives piles up."""
        self.ended = False
        """A dead process: nothing of it runs any more."""

    # --- driven by the simulation -------------------------------------------------------------

    def end(self) -> None:
        """Run nothing more."""
        self.ended = True
        self._ready.clear()
        for work in self._unbegun:
            work.close()
        self._unbegun.clear()

    def freeze(self) -> None:
        """Stop, as by SIGSTOP."""
        self.frozen = True

    def thaw(self) -> None:
        """Go on, as by SIGCONT."""
        self.frozen = False
        if self._ready:
            self._expect_turn()

    @property
    def due(self) -> int:
        """How many callbacks wait for a turn."""
        return len(self._ready)

    def _expect_turn(self) -> None:
        if not self._turn_waits and not self.frozen:
            self._turn_waits = True
            delay_us = _TURN_US_MIN + int(self._random() * _TURN_US_MORE)
            self._scheduler.after(delay_us, self._turn)

    def _turn(self) -> None:
        """Take a turn, and often the next ones at once, as a busy loop does."""
        if not self._may_run():
            self._turn_waits = False
            return
        outer = asyncio._get_running_loop()  # noqa: SLF001 -- as asyncio's own loops do
        asyncio._set_running_loop(self.as_asyncio)  # noqa: SLF001
        try:
            self._run_ready()
            while self._ready and self._may_run() and self._random() < _NEXT_AT_ONCE:
                self._run_ready()
        finally:
            asyncio._set_running_loop(outer)  # noqa: SLF001
            self._turn_waits = False  # only now: what this turn made ready may have run in it
        if self._ready and self._may_run():
            self._expect_turn()

    def _run_ready(self) -> None:
        """Run what is ready now; what it makes ready waits for the next turn."""
        ready, self._ready = self._ready, deque()
        try:
            while ready and not self.ended and not self.frozen:
                ready.popleft().run()
        except BaseException as error:  # noqa: BLE001 -- a dying process raises one
            self._failed(error)
        if ready:
            self._ready.extendleft(reversed(ready))
        if not self.ended:
            self._after_turn()

    def _may_run(self) -> bool:
        return not (self.ended or self.frozen)

    # --- asyncio ------------------------------------------------------------------------------

    @property
    def as_asyncio(self) -> asyncio.AbstractEventLoop:
        """This loop, for those who want to see an asyncio one."""
        return cast("asyncio.AbstractEventLoop", self)

    def time(self) -> float:
        """Seconds by the machine's clock."""
        return self._clock.monotonic()

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """Run it in the next turn; contexts are not kept apart."""
        del context
        handle = Handle(callback, args)
        if not self.ended:
            self._ready.append(handle)
            self._expect_turn()
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, **_: Any
    ) -> Handle:
        """Run it when ``delay`` seconds have passed by the machine's clock."""
        return self.call_at(self._clock.monotonic() + delay, callback, *args)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, **_: Any) -> Handle:
        """Run it when the machine's clock shows ``when``."""
        handle = Handle(callback, args)
        if not self.ended:
            self._arm(handle, when)
        return handle

    def _arm(self, handle: Handle, when: float) -> None:
        delay_us = self._clock.until_us(when)
        handle._timer = self._scheduler.after(delay_us, self._due, handle, when)  # noqa: SLF001

    def _due(self, handle: Handle, when: float) -> None:
        """Make a timer ready, unless the machine's clock has become slower meanwhile."""
        if self.ended:
            return
        if self._clock.monotonic() < when:
            self._arm(handle, when)
            return
        self._ready.append(handle)
        self._expect_turn()

    def create_future(self) -> "asyncio.Future[Any]":
        """A future of this loop."""
        return asyncio.Future(loop=self.as_asyncio)

    def create_task(
        self, coro: Coroutine[Any, Any, _Result], *, name: str | None = None, **_: Any
    ) -> "asyncio.Task[_Result]":
        """A task of this loop."""
        self._unbegun[coro] = None  # so that one that never begins is not complained about
        # Before its first step, in which it may end this loop.
        self.call_soon(self._unbegun.pop, coro, None)
        return asyncio.Task(coro, loop=self.as_asyncio, name=name)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A future or task was dropped with an exception that nobody has seen."""
        error = context.get("exception")
        if isinstance(error, BaseException) and not self.ended:
            self._failed(error)

    def is_running(self) -> bool:
        """Always, until the process ends."""
        return not self.ended

    def is_closed(self) -> bool:
        """Whether the process has ended."""
        return self.ended

    def get_debug(self) -> bool:
        """No: asyncio's debug mode measures real time."""
        return False
