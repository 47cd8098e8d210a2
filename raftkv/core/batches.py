"""Raft entries as bytes: MessagePack of a :class:`~raftkv.core.operations.Batch`, and nothing else.

The decoder is typed: it builds only the structs of :mod:`raftkv.core.operations`, with their
fields and bounds, whatever the bytes say. There is no pickle and no open set of types.
"""

import msgspec

from raftkv.core.errors import DECODE_FAILURES, CorruptBatch, UnknownFormat
from raftkv.core.operations import BATCH_FORMAT, BATCH_FORMATS_READ, Batch

__all__ = ["CorruptBatch", "UnknownFormat", "decode_batch", "encode_batch"]


class _FormatOnly(msgspec.Struct, array_like=True, frozen=True):
    format: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)
_format_decoder = msgspec.msgpack.Decoder(_FormatOnly)


def encode_batch(batch: Batch) -> bytes:
    """Encode a batch for the log and the wire."""
    return _encoder.encode(batch)


def decode_batch(data: bytes | memoryview) -> Batch:
    """Decode a log entry.

    Raises:
        UnknownFormat: A newer version wrote it; the replica must stop before it, not skip it.
        CorruptBatch: It is not a batch.
    """
    try:
        batch = _decoder.decode(data)
    except DECODE_FAILURES as error:
        # Only now is it worth telling a newer format from damage: this reads everything twice.
        _refuse_other_format(data)
        raise CorruptBatch(f"not an encoded batch: {error}") from error
    if batch.format not in BATCH_FORMATS_READ:
        raise _unknown(batch.format)
    return batch


def _refuse_other_format(data: bytes | memoryview) -> None:
    try:
        version = _format_decoder.decode(data).format
    except DECODE_FAILURES:
        return
    if version not in BATCH_FORMATS_READ:
        raise _unknown(version)


def _unknown(version: int) -> UnknownFormat:
    return UnknownFormat(f"batch of format {version}, this version knows up to {BATCH_FORMAT}")
