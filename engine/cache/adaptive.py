"""Which plain policy suits this model, budget and text: each one runs in miniature, the best of them decides.

The miniatures ("ghosts") hold keys alone. They see the experts of some layers only and have as large a share of the
slots: sampled so, a cache hits about as often as the whole one (Waldspurger et al., SHARDS, FAST 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

from engine.cache.deferred import DeferredEviction
from engine.cache.policies import EvictionPolicy
from engine.checkpoint.expert_key import ExpertKey

SAMPLED_LAYERS = 5  # about so many
HALF_LIFE_STEPS = 128.0
WATCHED_STEPS, RESTING_STEPS = 256, 768  # the ghosts run and rest by turns: a choice is good for longer than it takes
CLEARLY = 1.02  # times as many hits before the choice changes: the content must be worth more than the change costs


class AdaptiveEviction(EvictionPolicy):
    """Several policies; the one whose ghost has hit most lately chooses the victims, and the others wait to be told
    until it is their turn.

    `makers`: by name, from a number of layers; `first`: which is chosen in the beginning.
    """

    def __init__(self, layers: int, makers: Mapping[str, Callable[[int], EvictionPolicy]], first: str) -> None:
        self._stride = max(layers // SAMPLED_LAYERS, 1)
        sampled = -(-layers // self._stride)
        self._share = sampled / layers
        self._policies = {name: DeferredEviction(make(layers)) for name, make in makers.items()}
        self._ghosts = {name: _Ghost(make(sampled)) for name, make in makers.items()}
        self._steps = 0
        self._is_watching = True
        self.chosen = first

    def inserted(self, key: ExpertKey) -> None:
        for policy in self._policies.values():
            policy.inserted(key)

    def removed(self, key: ExpertKey) -> None:
        for policy in self._policies.values():
            policy.removed(key)

    def used(self, key: ExpertKey) -> None:
        for policy in self._policies.values():
            policy.used(key)
        if self._is_watching and not key.layer % self._stride:
            for ghost in self._ghosts.values():
                ghost.use(ExpertKey(key.layer // self._stride, key.expert))

    def step_ended(self) -> None:
        for policy in self._policies.values():
            policy.step_ended()
        if self._is_watching:
            for ghost in self._ghosts.values():
                ghost.step_ended()
            self._choose()
        self._steps += 1
        self._is_watching = self._steps % (WATCHED_STEPS + RESTING_STEPS) < WATCHED_STEPS

    def _choose(self) -> None:
        best = max(self._ghosts, key=lambda name: self._ghosts[name].hits)
        if self._ghosts[best].hits > CLEARLY * self._ghosts[self.chosen].hits:
            self.chosen = best

    def resized(self, slots: int) -> None:
        for policy in self._policies.values():
            policy.resized(slots)
        for ghost in self._ghosts.values():
            ghost.resize(max(round(slots * self._share), 1))

    def victim(self, blocked: Container[ExpertKey], incoming: ExpertKey | None) -> ExpertKey | None:
        return self._policies[self.chosen].victim(blocked, incoming)


class _Ghost:
    """A cache of keys under one policy. `hits`: the share of each step's uses, those of `HALF_LIFE_STEPS` ago counted
    half. A prompt counts no more than a token, however many experts it uses. As in the cache itself, none of a layer's
    experts makes room for another one of them: where slots are few, that decides which policy is best.
    """

    def __init__(self, policy: EvictionPolicy) -> None:
        self.hits = 0.0
        self._used = self._hit = 0  # in this step
        self._policy = policy
        self._held: set[ExpertKey] = set()
        self._layer_uses: list[ExpertKey] = []
        self._slots = 1

    def use(self, key: ExpertKey) -> None:
        if self._layer_uses and self._layer_uses[0].layer != key.layer:
            self._load()
        self._layer_uses.append(key)
        self._policy.used(key)
        self._used += 1
        self._hit += key in self._held

    def _load(self) -> None:
        """What the layer before used and was not there."""
        for key in self._layer_uses:
            if key not in self._held and self._make_room(self._slots - 1, key, self._layer_uses):
                self._held.add(key)
                self._policy.inserted(key)
        self._layer_uses.clear()

    def step_ended(self) -> None:
        self._load()
        self._policy.step_ended()
        self.hits = self.hits * 0.5 ** (1 / HALF_LIFE_STEPS) + self._hit / max(self._used, 1)
        self._used = self._hit = 0

    def resize(self, slots: int) -> None:
        self._slots = slots
        self._policy.resized(slots)
        self._make_room(slots, None)

    def _make_room(self, most: int, incoming: ExpertKey | None, blocked: Container[ExpertKey] = ()) -> bool:
        while len(self._held) > most:
            victim = self._policy.victim(blocked, incoming)
            if victim is None:
                return False
            self._held.discard(victim)
            self._policy.removed(victim)
        return True
