"""Faults: each is begun, watched until its effect is seen, and taken back."""

from raftkv.chaos.errors import ChaosError
from raftkv.chaos.faults.base import Context, Fault
from raftkv.chaos.faults.clock import ClockJump
from raftkv.chaos.faults.corruption import BitFlip
from raftkv.chaos.faults.disk import FullDisk
from raftkv.chaos.faults.forwarder import ForwarderRestart
from raftkv.chaos.faults.links import LinkTrouble, Partition
from raftkv.chaos.faults.processes import Kill, Pause, Stop, Storm
from raftkv.chaos.faults.wipe import Wipe
from raftkv.chaos.plan import Step

__all__ = ["Context", "Fault", "make_fault"]

_MAKERS: dict[str, type[Fault]] = {
    "kill": Kill,
    "storm": Storm,
    "stop": Stop,
    "pause": Pause,
    "forwarder": ForwarderRestart,
    "partition": Partition,
    "slow": LinkTrouble,
    "lossy": LinkTrouble,
    "reset": LinkTrouble,
    "clock": ClockJump,
    "disk": FullDisk,
    "bitflip": BitFlip,
    "wipe": Wipe,
}


def make_fault(step: Step, context: Context) -> Fault:
    """The fault that a step of the plan asks for."""
    try:
        return _MAKERS[step.kind](step, context)
    except KeyError:
        raise ChaosError(f"no such fault: {step.kind}") from None
