"""Where the state machine was before :mod:`raftkv.core.shard`."""

from raftkv.core.shard.machine import StateMachine

__all__ = ["StateMachine"]
