"""What several contexts open with, so that it is read once for all of them."""

from collections.abc import Sequence

from steerlib.prompting import TokenIds

SHORTEST_SHARED_PREFIX = 8


def shared_prefixes(sequences: Sequence[TokenIds]) -> list[int]:
    """How many opening tokens of each sequence are worth reading once for several of them.

    Neighbours in lexicographic order that share at least `SHORTEST_SHARED_PREFIX` tokens form a group; its prefix
    is what all of them share, one token short of the shortest, since every sequence needs a last token of its own.

    Returns:
        Length of the prefix of each sequence, 0 where it shares none.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    lengths = [0] * len(sequences)
    group: list[int] = []
    shared = 0
    for i in order:
        common = _common(sequences[group[-1]], sequences[i]) if group else 0
        if group and min(shared or common, common) >= SHORTEST_SHARED_PREFIX:
            group.append(i)
            shared = min(shared or common, common)
            lengths[i] = lengths[group[0]] = shared
        else:
            _close(group, lengths, shared)
            group, shared = [i], 0
    _close(group, lengths, shared)
    return lengths


def _close(group: list[int], lengths: list[int], shared: int) -> None:
    for i in group:
        lengths[i] = shared if len(group) > 1 else 0


def _common(a: TokenIds, b: TokenIds) -> int:
    longest = min(len(a), len(b)) - 1
    return next((k for k in range(longest) if a[k] != b[k]), max(longest, 0))
