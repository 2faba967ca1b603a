"""The paper's token scheduler: balanced clusters of tokens whose predicted routing paths are alike.

ExpertFlow (arXiv 2410.17954, section 3.3): similarity S_ij = 1 - Hamming(r_i, r_j) / (layers * experts); clusters of
equal size in the manner of K-means, whose centre is the member with the highest mean similarity to its cluster; a cap
on iterations. The paper does not say in which order tokens are dealt to full clusters; here the pair that is most
alike goes first.
"""

from __future__ import annotations

import numpy as np

ITERATIONS = 30


def hamming_similarity(paths: np.ndarray) -> np.ndarray:
    """float32 [tokens, tokens] of bool paths [tokens, layers * experts]: the paper's S."""
    used = paths.astype(np.float32)
    count = used.sum(1)
    differing = count[:, None] + count[None] - 2 * (used @ used.T)
    return 1 - differing / paths.shape[1]


def similar_groups(paths: np.ndarray, size: int, random: np.random.Generator) -> list[np.ndarray]:
    """Splits the tokens into clusters of `size`, the last ones one smaller where it does not divide.

    paths: bool [tokens, layers * experts]. Returns each cluster's places in ascending order.
    """
    tokens = len(paths)
    clusters = -(-tokens // size)
    if clusters <= 1:
        return [np.arange(tokens)] if tokens else []
    similarity = hamming_similarity(paths)
    capacity = np.full(clusters, tokens // clusters)
    capacity[: tokens % clusters] += 1
    centres = random.choice(tokens, clusters, replace=False)
    for _ in range(ITERATIONS):
        cluster_of = _dealt(similarity[:, centres], capacity)
        moved = np.array([_centre(similarity, np.flatnonzero(cluster_of == c)) for c in range(clusters)])
        if np.array_equal(moved, centres):
            break
        centres = moved
    return [np.flatnonzero(cluster_of == c) for c in range(clusters)]


def _dealt(closeness: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """int [tokens], each token's cluster; closeness: [tokens, clusters]. The closest pair first, until one is full."""
    cluster_of = np.full(len(closeness), -1)
    room = capacity.copy()
    for pair in np.argsort(-closeness, axis=None, kind="stable").tolist():
        token, cluster = divmod(pair, closeness.shape[1])
        if cluster_of[token] < 0 and room[cluster]:
            cluster_of[token] = cluster
            room[cluster] -= 1
    return cluster_of


def _centre(similarity: np.ndarray, members: np.ndarray) -> int:
    return int(members[similarity[np.ix_(members, members)].mean(1).argmax()])
