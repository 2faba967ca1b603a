"""Eviction policies by the names that settings and commands use."""

from __future__ import annotations

from collections.abc import Callable

from engine.cache.adaptive import AdaptiveEviction
from engine.cache.policies import LRU, DecayedLFU, EvictionPolicy, layer_lfu, layer_lru
from engine.errors import InvalidSetting

MakePolicy = Callable[[int], EvictionPolicy]
"""A fresh policy for a model of so many MoE layers."""

_PLAIN: dict[str, MakePolicy] = {
    "lru": lambda layers: LRU(),
    "lru-per-layer": layer_lru,
    "lfu": lambda layers: DecayedLFU(),
    "lfu-per-layer": layer_lfu,
}
PLAIN_POLICIES = tuple(_PLAIN)
AUTO = "auto"  # predictive or adaptive: see engine.routing.foresight.choose_policy
ADAPTIVE = "adaptive"  # whichever plain policy has hit most lately
PREDICTIVE = "predictive"  # eviction and prefetching together: see engine.routing.foresight
POLICY_NAMES = (AUTO, *PLAIN_POLICIES, ADAPTIVE, PREDICTIVE)


def check_policy(name: str) -> str:
    """`name`. Raises InvalidSetting for an unknown one."""
    if name in POLICY_NAMES:
        return name
    raise InvalidSetting(f"There is no cache policy called {name!r}.", f"Choose one of: {', '.join(POLICY_NAMES)}.")


def make_policy(name: str, layers: int) -> EvictionPolicy:
    """A fresh policy, by one of PLAIN_POLICIES or ADAPTIVE."""
    return AdaptiveEviction(layers, _PLAIN, "lfu-per-layer") if name == ADAPTIVE else _PLAIN[name](layers)
