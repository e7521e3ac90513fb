"""Which records a canary gets: a fixed share of the keys, the same ones on every replica and in every language.

A record's *slot* is a number from 0 to 9,999. The candidate answers the records whose slot is below ``share`` x 10,000. The
slot depends on the key and on the rollout's id alone, so that a key never changes sides while a rollout lasts, and a share
that grows only adds keys.

The slot is BLAKE2b (RFC 7693) with a digest of 8 bytes, read as an unsigned big-endian number, modulo 10,000:

- The hashed bytes are the record's key. A record without a key counts as ``<partition>/<offset>`` in decimal ASCII, for
  example ``3/1042``. An empty key is a key.
- BLAKE2b's own key is the rollout's id in UTF-8. Where that is longer than 64 bytes, its unkeyed BLAKE2b digest of 64 bytes
  takes its place. There is no salt and no personalization.

In Python: ``int.from_bytes(hashlib.blake2b(key, digest_size=8, key=rollout_id).digest(), "big") % 10_000``.
"""

from __future__ import annotations

from hashlib import blake2b

SLOTS = 10_000
"""Slots that keys fall into; a share is rounded to whole slots."""
_ID_BYTES_MAX = 64
"""Longest key that BLAKE2b takes."""


def blake2_key(rollout_id: str) -> bytes:
    """The bytes with which a rollout keys BLAKE2b."""
    given = rollout_id.encode()
    return given if len(given) <= _ID_BYTES_MAX else blake2b(given).digest()


def slot_of(blake2_key: bytes, key: bytes) -> int:
    """The slot of a record.

    Args:
        blake2_key: of the rollout, see :func:`blake2_key`.
        key: of the record, or what stands for it.
    """
    return int.from_bytes(blake2b(key, digest_size=8, key=blake2_key).digest(), "big") % SLOTS


def stand_in(partition: int, offset: int) -> bytes:
    """What is hashed of a record without a key."""
    return b"%d/%d" % (partition, offset)


def slots_below(share: float) -> int:
    """How many slots the candidate has at a share from 0 to 1."""
    return round(share * SLOTS)
