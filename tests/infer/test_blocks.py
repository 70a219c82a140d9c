"""Blocks: exact accounting under any order of taking, branching, writing and giving back; nothing is shared that differs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.infer.backend import BLOCK
from herdbook.infer.blocks import BlockPool, Blocks, blocks_for, chain


class Text:
    """A sequence, and what a memory of its own would hold."""

    def __init__(self, pool: BlockPool, tokens: list[int]) -> None:
        self.blocks, self.tokens, self.computed = Blocks(pool), tokens, 0


def write(text: Text, count: int, memory: dict[tuple[int, int], int]) -> bool:
    """Compute up to `count` tokens, as a backend would."""
    copies = text.blocks.own(text.computed, count)
    if copies is None:
        return False
    for source, target in copies:
        for place in range(BLOCK):
            memory[target, place] = memory.get((source, place), -1)
    for place in range(text.computed, count):
        memory[text.blocks.table[place // BLOCK], place % BLOCK] = text.tokens[place]
    text.computed = count
    text.blocks.tell(text.tokens, count)
    return True


@settings(deadline=None, max_examples=150)
@given(data=st.data(), count=st.integers(1, 12), remember=st.booleans())
def test_every_sequence_reads_its_own_tokens_and_nothing_leaks(data: st.DataObject, count: int, remember: bool) -> None:
    pool, texts = BlockPool(count, remember=remember), []
    memory: dict[tuple[int, int], int] = {}
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["begin", "write", "branch", "back", "end"]))
        if action == "begin" or not texts:
            # Few different tokens, so that texts begin alike.
            starts = [[0] * 70, [0] * 16 + [1] * 54, [0] * 32 + [2] * 38]
            text = Text(pool, list(data.draw(st.sampled_from(starts)))[: data.draw(st.integers(1, 70))])
            text.computed = text.blocks.find(text.tokens)
            assert text.computed < len(text.tokens)
            texts.append(text)
            continue
        text = data.draw(st.sampled_from(texts))
        if action == "write" and text.computed < len(text.tokens):
            before = list(text.blocks.table)
            if not write(text, data.draw(st.integers(text.computed + 1, len(text.tokens))), memory):
                assert text.blocks.table == before
        elif action == "branch":
            twin = Text(pool, [*text.tokens[: text.computed], *[data.draw(st.integers(3, 9))] * 20])
            twin.blocks, twin.computed = text.blocks.branch(), text.computed
            texts.append(twin)
        elif action == "back":
            text.blocks.trim(text.computed)
            assert len(text.blocks.table) == blocks_for(text.computed)
        elif action == "end":
            text.blocks.release()
            texts.remove(text)
        for one in texts:
            read = [memory[one.blocks.table[place // BLOCK], place % BLOCK] for place in range(one.computed)]
            assert read == one.tokens[: one.computed]
        held = {block for one in texts for block in one.blocks.table}
        assert pool.held == len(held)
        assert all(pool.references(block) == sum(one.blocks.table.count(block) for one in texts) for block in range(count))
    for text in texts:
        text.blocks.release()
    assert (pool.held, pool.available) == (0, count)


def test_what_was_used_longest_ago_is_given_away_first() -> None:
    pool = BlockPool(4)
    for token in (1, 2):
        text = Text(pool, [token] * 33)
        assert write(text, 32, {})
        text.blocks.release()
    again = Blocks(pool)
    assert again.find([1] * 33) == 32
    again.release()
    other = Text(pool, [3] * 16)
    assert write(other, 16, {})
    assert (Blocks(pool).find([1] * 33), Blocks(pool).find([2] * 33)) == (32, 16)


def test_neighbours_are_given_where_they_are_free() -> None:
    pool = BlockPool(8)
    one, two = Blocks(pool), Blocks(pool)
    for end in (16, 32, 48):
        one.own(end - 16, end)
    two.own(0, 16)
    one.release()
    two.own(16, 64)
    assert one.table == []
    assert two.table == [3, 4, 5, 6]


def test_keys_stand_for_the_whole_text() -> None:
    assert chain(chain(b"", [1] * 16), [2] * 16) != chain(chain(b"", [3] * 16), [2] * 16)
