"""The simulated clock: what it promises to the code that is given it."""

import pytest

from raftkv.sim.clock import SimClock


def test_stands_still_until_told() -> None:
    """Two readings without an advance between them are equal."""
    clock = SimClock()
    assert clock.monotonic() == clock.monotonic()
    assert clock.time_us() == clock.time_us()


def test_advances_both_clocks_by_the_same() -> None:
    """An advance moves monotonic and wall time together."""
    clock = SimClock(start_s=5.0, wall_us=100)
    clock.advance(0.25)
    assert clock.monotonic() == 5.25
    assert clock.time_us() == 250_100


def test_many_small_steps_equal_one_large() -> None:
    """Cutting time into steps does not change it, which sums of floats would."""
    stepped, at_once = SimClock(), SimClock()
    for _ in range(1000):
        stepped.advance(0.1)
    at_once.advance(100.0)
    assert stepped.monotonic() == at_once.monotonic()


def test_refuses_to_go_back() -> None:
    """A negative advance is an error: monotonic time never goes back."""
    with pytest.raises(ValueError, match="does not go back"):
        SimClock().advance(-0.1)


def test_wall_clock_can_jump_alone() -> None:
    """A wall clock set back leaves monotonic time as it was."""
    clock = SimClock(start_s=5.0, wall_us=1000)
    clock.step_wall(-400)
    assert clock.time_us() == 600
    assert clock.monotonic() == 5.0
