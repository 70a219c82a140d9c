"""Which block of keys and values belongs to whom: counts of references, and full blocks kept for later requests.

A block is free, held by one or more sequences, or idle: held by nobody, but full and remembered by what it contains, so that a
later sequence that begins alike takes it instead of computing it. Idle blocks are given away when the free ones are used up,
the one that nobody held for longest first. A full block is never written again, so sequences share it as it is; a sequence that
branches shares its last, half-filled block too, and copies it before it writes (`Blocks.own`).

What a block contains is told by a chain of hashes (as in vLLM, Kwon et al. 2023, arXiv:2309.06180, section 4.3): its 16 tokens
together with the key of the block before, so that a key stands for the whole text up to there. With 128 bits nobody meets two
texts of one key.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from herdbook.infer.backend import BLOCK

Key = bytes
ROOT: Key = b""


def chain(before: Key, tokens: Sequence[int]) -> Key:
    """The key of a full block after the block with key `before`."""
    return blake2b(before + struct.pack(f"<{len(tokens)}q", *tokens), digest_size=16).digest()


def blocks_for(tokens: int) -> int:
    """How many blocks hold so many tokens."""
    return -(-tokens // BLOCK)


class BlockPool:
    """All blocks of a backend.

    Attributes:
        count: how many there are.
        remember: whether the content of full blocks is kept.
    """

    def __init__(self, count: int, *, remember: bool = True) -> None:
        self.count, self.remember = count, remember
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))
        self._held = [0] * count
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._by_key: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}

    @property
    def available(self) -> int:
        """Blocks that `take` could give."""
        return len(self._free) + len(self._idle)

    @property
    def held(self) -> int:
        """Blocks that some sequence holds."""
        return self.count - self.available

    def references(self, block: int) -> int:
        """How many hold it."""
        return self._held[block]

    def take(self, after: int | None = None) -> int | None:
        """A block for one holder, None when all are held; the one behind `after` if that is free, as neighbours read faster."""
        if after is not None and after + 1 in self._free:
            del self._free[after + 1]
            block = after + 1
        elif self._free:
            block, _ = self._free.popitem(last=False)
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        else:
            return None
        self._held[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more holder."""
        if self._held[block] == 0:
            del self._idle[block]
        self._held[block] += 1

    def release(self, block: int) -> None:
        """One holder less; without any it is idle if its content is known, else free."""
        assert self._held[block] > 0, f"block {block} is released more often than it was taken"
        self._held[block] -= 1
        if self._held[block] == 0:
            (self._idle if block in self._keys else self._free)[block] = None

    def know(self, block: int, key: Key) -> None:
        """Note what a full block contains; a second block of the same content stays unknown."""
        if self.remember and key not in self._by_key and block not in self._keys:
            self._by_key[key], self._keys[block] = block, key

    def find(self, key: Key) -> int | None:
        """The block of this content, if there is one."""
        return self._by_key.get(key)

    def _forget(self, block: int) -> None:
        del self._by_key[self._keys.pop(block)]


class Blocks:
    """The blocks of one sequence, in order. Its tokens may only grow while it holds blocks that are known.

    Attributes:
        table: block numbers.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.table: list[int] = []
        self._keys: list[Key] = []  # of the sequence's full blocks, held or not
        self._known = 0  # blocks of the table whose content the pool was told

    def keys(self, tokens: Sequence[int]) -> list[Key]:
        """Keys of the full blocks of the sequence; none where the pool remembers nothing."""
        if self._pool.remember:
            for start in range(len(self._keys) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
                self._keys.append(chain(self._keys[-1] if self._keys else ROOT, tokens[start : start + BLOCK]))
        return self._keys

    def find(self, tokens: Sequence[int], most: int | None = None) -> int:
        """Take the full blocks that are known for the beginning of `tokens`; how many tokens they hold.

        That is fewer than all tokens, because the logits behind the last one are wanted, and at most `most`.
        """
        assert not self.table
        limit = len(tokens) - 1 if most is None else min(most, len(tokens) - 1)
        for key in self.keys(tokens)[: max(0, limit) // BLOCK]:
            block = self._pool.find(key)
            if block is None:
                break
            self._pool.share(block)
            self.table.append(block)
        self._known = len(self.table)
        return len(self.table) * BLOCK

    def own(self, start: int, end: int) -> list[tuple[int, int]] | None:
        """Make the places of tokens `start` to `end` writable: blocks to copy as (from, to), or None for want of blocks.

        With None nothing has changed. The copies must be made before anything else is written.
        """
        last = blocks_for(end)
        shared = [place for place in range(start // BLOCK, len(self.table)) if self._pool.references(self.table[place]) > 1]
        if len(shared) + max(0, last - len(self.table)) > self._pool.available:
            return None
        copies = []
        for place in shared:
            old = self.table[place]
            self.table[place] = self._take(place)
            self._pool.release(old)
            copies.append((old, self.table[place]))
        while len(self.table) < last:
            self.table.append(self._take(len(self.table)))
        return copies

    def _take(self, place: int) -> int:
        block = self._pool.take(self.table[place - 1] if place else None)
        assert block is not None
        return block

    def tell(self, tokens: Sequence[int], count: int) -> None:
        """Say that the first `count` of `tokens` are computed, so that other sequences find them."""
        keys = self.keys(tokens)
        for place in range(self._known, min(count // BLOCK, len(keys))):
            self._pool.know(self.table[place], keys[place])
            self._known = place + 1

    def trim(self, count: int) -> None:
        """Give back the blocks behind the first `count` tokens."""
        while len(self.table) > blocks_for(count):
            self._pool.release(self.table.pop())

    def branch(self) -> Blocks:
        """The same blocks for one more sequence, which goes on differently behind what is computed."""
        twin = Blocks(self._pool)
        for block in self.table:
            self._pool.share(block)
        twin.table, twin._keys, twin._known = list(self.table), self._keys[: self._known], self._known
        return twin

    def release(self) -> None:
        """Give all blocks back, the last first, so that the beginning of a text is remembered longest."""
        self.trim(0)
        self._known = 0
