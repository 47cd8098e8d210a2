"""Frames as a stranger would make them, byte by byte."""

import struct


def encode_frame(channel: int, payload: bytes) -> bytes:
    """Return one whole frame: its length and channel, then the payload."""
    return struct.pack("<IB", len(payload) + 1, channel) + payload
