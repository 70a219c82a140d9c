"""Log-likelihoods of many continuations, each shared beginning read once.

The requests' tokens are laid into a prefix tree (few-shot examples, a question behind them, the choices behind that), and each
node goes through the model once, behind the blocks of its parent. Nodes of many branches run in one batch; a node is begun only
when there are blocks for the longest way down from it. Memory that is too small for that holds one way at a time.

Shapes: W rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from herdbook.errors import UserError
from herdbook.infer.backend import BLOCK, Backend, Span
from herdbook.infer.blocks import BlockPool, Blocks, blocks_for

PASS_TOKENS = 8192  # tokens of one pass
PASS_ROWS = 128  # nodes of one pass
LOGITS = 2**26  # values of the logits of one pass


@dataclass(eq=False)
class _Node:
    """Tokens `start` to `end` of `source`, which all sequences below have in common.

    Attributes:
        asked: for a place of the sequence, the (request, number of the token in its continuation, token) that follow it.
        need: blocks for the node and the longest way down, when the parent keeps its own.
        waiting: children that have not begun.
    """

    source: Sequence[int]
    start: int
    end: int
    parent: _Node | None = None
    children: dict[int, _Node] = field(default_factory=dict)
    asked: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    blocks: Blocks | None = None
    computed: int = 0
    need: int = 0
    waiting: int = 0

    def split(self, place: int) -> None:
        """Cut the node in two before a place."""
        tail = _Node(self.source, place, self.end, self, self.children)
        for child in tail.children.values():
            child.parent = tail
        tail.asked = {at: self.asked.pop(at) for at in list(self.asked) if at >= place}
        self.end, self.children = place, {self.source[place]: tail}


def score(
    backend: Backend, pool: BlockPool, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[list[tuple[float, bool]]]:
    """Of each token of each continuation: its log-probability in nats, and whether it was the likeliest.

    Args:
        requests: context, which is not empty, and continuation; together at most one token more than the context.

    Raises UserError when the longest does not fit the blocks that are available.
    """
    found: list[list[tuple[float, bool]]] = [[(0.0, False)] * len(continuation) for _, continuation in requests]
    stack = _tree(requests)
    active: list[_Node] = []
    try:
        while stack or active:
            _begin(pool, backend, stack, active)
            if not active:
                _uproot(pool, backend, stack, active)
            _step(backend, active, found)
            for node in [node for node in active if node.computed == node.end]:
                active.remove(node)
                stack += sorted(node.children.values(), key=lambda child: (-child.need, child.source[child.start]))
                if not node.children:
                    _release(node)
    finally:
        for node in (*active, *(one.parent for one in stack if one.parent is not None)):
            _release(node)
    return found


def _tree(requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[_Node]:
    """The prefix tree; its topmost nodes, the ones to begin with last."""
    roots: dict[int, _Node] = {}
    for number, (context, continuation) in enumerate(requests):
        if not continuation:
            continue
        tokens = (*context, *continuation[:-1])
        way = list(_insert(roots, tokens))
        asked = {len(context) - 1 + at: (number, at, token) for at, token in enumerate(continuation)}
        for node in way:
            for place in range(max(node.start, len(context) - 1), node.end):
                node.asked.setdefault(place, []).append(asked[place])
    order = list(roots.values())
    for node in order:
        order += node.children.values()
    for node in reversed(order):
        _measure(node)
    return sorted(roots.values(), key=lambda node: (node.need, -node.source[0]))


def _insert(children: dict[int, _Node], tokens: Sequence[int]) -> Iterator[_Node]:
    """Lay a sequence into the tree; the nodes it goes through."""
    place, parent = 0, None
    while place < len(tokens):
        node = children.get(tokens[place])
        if node is None:
            node = children[tokens[place]] = _Node(tokens, place, len(tokens), parent)
        end = min(node.end, len(tokens))
        if tuple(node.source[place:end]) != tuple(tokens[place:end]):
            end = next(at for at in range(place, end) if node.source[at] != tokens[at])
        if end < node.end:
            node.split(end)
        yield node
        place, parent, children = end, node, node.children


def _measure(node: _Node) -> None:
    """Blocks that a node and the longest way down take; its children's are known."""
    node.waiting = len(node.children)
    node.computed = node.start
    below = sorted(child.need for child in node.children.values())
    # The last child takes its parent's blocks over, so the half-filled one is not copied.
    over = 1 if below and node.end % BLOCK else 0
    down = max(below[-1] - over, below[-2] if len(below) > 1 else 0) if below else 0
    node.need = blocks_for(node.end) - node.start // BLOCK + down


def _begin(pool: BlockPool, backend: Backend, stack: list[_Node], active: list[_Node]) -> None:
    """Give blocks to nodes from the top of the stack, as long as each can go all its way down."""
    promised = sum(node.need - (blocks_for(node.end) - node.start // BLOCK) for node in active)
    while stack and len(active) < PASS_ROWS:
        node = stack[-1]
        last = node.parent is not None and node.parent.waiting == 1
        need = node.need - (1 if last and node.start % BLOCK else 0)
        if promised + need > pool.available:
            return
        stack.pop()
        _take(node, pool, backend, last=last)
        promised += node.need - (blocks_for(node.end) - node.start // BLOCK)
        active.append(node)


def _uproot(pool: BlockPool, backend: Backend, stack: list[_Node], active: list[_Node]) -> None:
    """Where memory is too small to keep what branches share: let all go and begin with one way down, from its beginning."""
    for node in stack:
        if node.parent is not None:
            _release(node.parent)
            node.need += node.start // BLOCK
            node.parent, node.start = None, 0
    if blocks_for(stack[-1].end) > pool.available:
        raise UserError(
            f"{stack[-1].end:,} tokens do not fit the memory for keys and values", where="engine.kv_memory", todo="raise it"
        )
    active.append(stack.pop())
    _take(active[0], pool, backend, last=False)


def _take(node: _Node, pool: BlockPool, backend: Backend, *, last: bool) -> None:
    """Blocks for a node, behind its parent's."""
    parent = node.parent
    if parent is None:
        node.blocks = Blocks(pool)
        node.computed = node.blocks.find(node.source[: node.end], min(node.asked, default=node.end))
    else:
        assert parent.blocks is not None
        parent.waiting -= 1
        node.blocks, parent.blocks = (parent.blocks, None) if last else (parent.blocks.branch(), parent.blocks)
    copies = node.blocks.own(node.computed, node.end)
    assert copies is not None
    backend.copy(copies)


def _step(backend: Backend, active: list[_Node], found: list[list[tuple[float, bool]]]) -> None:
    """One pass: a piece of each active node, as far as tokens and logits go."""
    spans, asked = [], []
    tokens, rows = PASS_TOKENS, max(64, LOGITS // backend.cfg.vocabulary)
    pieces: list[tuple[_Node, int]] = []
    for node in active:
        end = min(node.end, node.computed + tokens)
        wanted = [place for place in range(node.computed, end) if place in node.asked]
        if len(wanted) > rows:
            end = wanted[rows]
            wanted = wanted[:rows]
        if end == node.computed:
            continue
        assert node.blocks is not None
        places = [place - node.computed for place in wanted]
        spans.append(Span(node.source[node.computed : end], node.computed, node.blocks.table, places))
        asked += [node.asked[place] for place in wanted]
        tokens, rows = tokens - (end - node.computed), rows - len(wanted)
        pieces.append((node, end))
    logits_WV = backend.run(spans)
    for node, end in pieces:
        node.computed = end
        assert node.blocks is not None
        node.blocks.tell(node.source[:end], end)
    if asked:
        _read(logits_WV, asked, found)


def _read(logits_WV: torch.Tensor, asked: list[list[tuple[int, int, int]]], found: list[list[tuple[float, bool]]]) -> None:
    """Log-probabilities of the tokens that are asked for behind each row."""
    flat = [(row, *one) for row, ones in enumerate(asked) for one in ones]
    rows = torch.tensor([one[0] for one in flat], device=logits_WV.device)
    targets = torch.tensor([one[3] for one in flat], device=logits_WV.device)
    logprobs = (logits_WV[rows, targets] - logits_WV.logsumexp(-1)[rows]).tolist()
    greedy = (logits_WV.argmax(-1)[rows] == targets).tolist()
    for (_, request, place, _), logprob, likeliest in zip(flat, logprobs, greedy, strict=True):
        found[request][place] = logprob, likeliest


def _release(node: _Node) -> None:
    if node.blocks is not None:
        node.blocks.release()
        node.blocks = None
