"""A bounded table of records that expire: forgets the expired first, then the least recently used."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import Generic, TypeVar

# Keys looked at for each new key. Two, so that the expired are dropped faster than others can come.
_SWEEP_PER_ADDITION = 2
# Expiries are filed in steps of 1/1024 of the time left, so that there are few steps, however long the windows.
_PRECISION_BITS = 10


class Record:
    """What is kept for one key.

    expires_ns: when it stops to mean anything. May be moved later at any time, never earlier.
    slot_ns: the slot in which the table has filed it.
    """

    __slots__ = ("expires_ns", "slot_ns")

    expires_ns: int
    slot_ns: int


RecordT = TypeVar("RecordT", bound=Record)


class WindowTable(Generic[RecordT]):
    """key -> record, for at most ``max_keys`` keys, at O(1) a call.

    Keys are filed in slots by the time at which they expire, rounded up. A record whose expiry was moved stays where
    it is until its slot is due, and is filed anew then.
    """

    __slots__ = ("_max_keys", "_records", "_slot_times_ns", "_slots")

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        self._records: OrderedDict[str, RecordT] = OrderedDict()
        # Dictionaries as ordered sets: a key that is evicted must leave its slot at once, or a flood would fill it.
        self._slots: dict[int, dict[str, None]] = {}
        self._slot_times_ns: list[int] = []

    def __len__(self) -> int:
        return len(self._records)

    def find(self, key: str, now_ns: int) -> RecordT | None:
        """The key's record, which is now the most recently used; None if there is none or it has expired."""
        record = self._records.get(key)
        if record is None:
            return None
        if record.expires_ns <= now_ns:
            self.forget(key)
            return None
        self._records.move_to_end(key)
        return record

    def add(self, key: str, record: RecordT, now_ns: int) -> None:
        """Adds a key that is not in the table."""
        self._forget_expired(now_ns)
        if len(self._records) >= self._max_keys:
            self.forget(next(iter(self._records)))
        self._records[key] = record
        self._file(key, record, now_ns)

    def forget(self, key: str) -> None:
        """Removes a key, if it is there."""
        record = self._records.pop(key, None)
        if record is not None:
            del self._slots[record.slot_ns][key]

    def clear(self) -> None:
        """Removes all keys."""
        self._records.clear()
        self._slots.clear()
        self._slot_times_ns.clear()

    def _file(self, key: str, record: RecordT, now_ns: int) -> None:
        step_ns = 1 << max(0, (record.expires_ns - now_ns).bit_length() - _PRECISION_BITS)
        slot_ns = -(-record.expires_ns // step_ns) * step_ns
        keys = self._slots.get(slot_ns)
        if keys is None:
            self._slots[slot_ns] = {key: None}
            heapq.heappush(self._slot_times_ns, slot_ns)
        else:
            keys[key] = None
        record.slot_ns = slot_ns

    def _forget_expired(self, now_ns: int) -> None:
        for _ in range(_SWEEP_PER_ADDITION):
            if not self._slot_times_ns or self._slot_times_ns[0] > now_ns:
                return
            slot_ns = self._slot_times_ns[0]
            keys = self._slots[slot_ns]
            key = keys.popitem()[0] if keys else None
            if not keys:
                del self._slots[slot_ns]
                heapq.heappop(self._slot_times_ns)
            if key is not None:
                record = self._records[key]
                if record.expires_ns <= now_ns:
                    del self._records[key]
                else:
                    self._file(key, record, now_ns)
