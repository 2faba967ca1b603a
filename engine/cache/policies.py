"""Who leaves when a slot is needed: eviction policies as plain Python on keys, no bytes, threads or clocks.

A policy orders resident experts; `Residency` tells it what happens and asks it for a victim. The same objects
run in the engine and in offline replays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush

from engine.checkpoint.expert_key import ExpertKey


class EvictionPolicy(ABC):
    """Contract: `inserted` and `removed` mirror residency; `used` is called once per activation, resident or not."""

    @abstractmethod
    def inserted(self, key: ExpertKey) -> None:
        """`key` took a slot (its bytes may still be on the way)."""

    @abstractmethod
    def removed(self, key: ExpertKey) -> None:
        """`key` gave its slot back."""

    @abstractmethod
    def used(self, key: ExpertKey) -> None:
        """A forward step needs `key` now."""

    def step_ended(self) -> None:  # noqa: B027 - only policies with a notion of time care
        """One token (or prefill chunk) is done."""

    def resized(self, slots: int) -> None:  # noqa: B027 - only policies with quotas care
        """The number of slots is now `slots`."""

    @abstractmethod
    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        """The resident key to evict for `incoming` (None: the cache shrinks), never one in `blocked`."""


class LRU(EvictionPolicy):
    """Least recently used over all layers."""

    def __init__(self) -> None:
        self._order: OrderedDict[ExpertKey, None] = OrderedDict()

    def inserted(self, key: ExpertKey) -> None:
        self._order[key] = None

    def removed(self, key: ExpertKey) -> None:
        del self._order[key]

    def used(self, key: ExpertKey) -> None:
        if key in self._order:
            self._order.move_to_end(key)

    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        return next((key for key in self._order if key not in blocked), None)


class DecayedLFU(EvictionPolicy):
    """Least frequently used, where a use `half_life_steps` ago counts half. Absent experts keep their count.

    A use only raises a score, so what the heap says of it is never too high: it is put right when it comes up.
    """

    def __init__(self, half_life_steps: float = 64.0) -> None:
        self._growth = 2.0 ** (1.0 / half_life_steps)
        self._weight = 1.0  # of a use now: growing weights spare decaying every count
        self._score: defaultdict[ExpertKey, float] = defaultdict(float)
        self._entered: dict[ExpertKey, float] = {}  # residents' scores in the heap; any other entry is outdated
        self._lowest: list[tuple[float, ExpertKey]] = []  # heap

    def inserted(self, key: ExpertKey) -> None:
        self._enter(key)

    def removed(self, key: ExpertKey) -> None:
        del self._entered[key]

    def used(self, key: ExpertKey) -> None:
        self._score[key] += self._weight

    def step_ended(self) -> None:
        self._weight *= self._growth
        if self._weight > 1e12:
            for key in self._score:
                self._score[key] /= self._weight
            self._weight = 1.0
            self._rebuild()
        elif len(self._lowest) > 8 * len(self._entered):
            self._rebuild()

    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        return _first_valid(self._lowest, self._is_current, blocked)

    def _is_current(self, key: ExpertKey, score: float) -> bool:
        """Enters a resident anew that was used since."""
        if self._entered.get(key) != score:
            return False
        if score < self._score[key]:
            self._enter(key)
            return False
        return True

    def _enter(self, key: ExpertKey) -> None:
        score = self._entered[key] = self._score[key]
        heappush(self._lowest, (score, key))

    def _rebuild(self) -> None:
        self._entered = {key: self._score[key] for key in self._entered}
        self._lowest = [(score, key) for key, score in self._entered.items()]
        heapify(self._lowest)


def _first_valid(
    heap: list[tuple[float, ExpertKey]],
    is_current: Callable[[ExpertKey, float], bool],
    blocked: Container[ExpertKey],
) -> ExpertKey | None:
    """The first key of `heap` that is not blocked; drops outdated entries on the way, keeps all others."""
    set_aside = []
    found = None
    while heap and found is None:
        score, key = heappop(heap)
        if is_current(key, score):
            set_aside.append((score, key))
            found = key if key not in blocked else None
    for entry in set_aside:
        heappush(heap, entry)
    return found


class PerLayer(EvictionPolicy):
    """A policy inside each layer, slots shared out evenly.

    A global LRU hits nothing when slots are fewer than one token's activations (a cyclic scan); equal shares
    keep every layer's favourites. They also compare experts of one layer only, which wait for their next token alike.
    """

    def __init__(self, layers: int, make: Callable[[], EvictionPolicy]) -> None:
        self._inside = [make() for _ in range(layers)]
        self._held = [0] * layers
        self._quota = [0] * layers

    def resized(self, slots: int) -> None:
        share, rest = divmod(slots, len(self._inside))
        self._quota = [share + (layer < rest) for layer in range(len(self._inside))]

    def inserted(self, key: ExpertKey) -> None:
        self._held[key.layer] += 1
        self._inside[key.layer].inserted(key)

    def removed(self, key: ExpertKey) -> None:
        self._held[key.layer] -= 1
        self._inside[key.layer].removed(key)

    def used(self, key: ExpertKey) -> None:
        self._inside[key.layer].used(key)

    def step_ended(self) -> None:
        for policy in self._inside:
            policy.step_ended()

    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        for layer in self._by_surplus(incoming):
            key = self._inside[layer].victim(blocked, incoming) if self._held[layer] else None
            if key is not None:
                return key
        return None

    def _by_surplus(self, incoming: ExpertKey | None) -> Iterator[int]:
        """The incoming expert's own layer if it has used up its share, then the layers most above theirs."""
        if incoming is not None and self._held[incoming.layer] >= self._quota[incoming.layer]:
            yield incoming.layer
        surplus = [held - quota for held, quota in zip(self._held, self._quota, strict=True)]
        yield from sorted(range(len(surplus)), key=lambda layer: -surplus[layer])


def layer_lru(layers: int) -> PerLayer:
    """LRU inside each layer."""
    return PerLayer(layers, LRU)


def layer_lfu(layers: int) -> PerLayer:
    """Decayed LFU inside each layer."""
    return PerLayer(layers, DecayedLFU)


class Belady(EvictionPolicy):
    """Farthest next use, from a recorded future: the bound for demand caching (Belady 1966). Offline only."""

    def __init__(self, future: Iterable[Sequence[ExpertKey]]) -> None:
        self._uses: dict[ExpertKey, deque[int]] = {}
        for moment, keys in enumerate(future):
            for key in keys:
                self._uses.setdefault(key, deque()).append(moment)
        self._resident: set[ExpertKey] = set()
        self._farthest: list[tuple[float, ExpertKey]] = []  # heap of (-next use, key); outdated entries are skipped

    def inserted(self, key: ExpertKey) -> None:
        self._resident.add(key)
        self._enter(key)

    def removed(self, key: ExpertKey) -> None:
        self._resident.discard(key)

    def used(self, key: ExpertKey) -> None:
        self._uses[key].popleft()
        if key in self._resident:
            self._enter(key)

    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        return _first_valid(self._farthest, self._is_current, blocked)

    def _is_current(self, key: ExpertKey, score: float) -> bool:
        return key in self._resident and -score == self._next_use(key)

    def _enter(self, key: ExpertKey) -> None:
        heappush(self._farthest, (-self._next_use(key), key))

    def _next_use(self, key: ExpertKey) -> float:
        uses = self._uses.get(key)
        return uses[0] if uses else float("inf")
