"""What several rows will touch: as `engine.routing.touching` says, without its many small arrays."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np

from engine.model.kernels.declare import kernel
from engine.model.kernels.log_odds import logit, sigmoid


@kernel
def list_due(due, absent, first, least, places):
    """See `engine.routing.touching.list_due_by_numpy`; of equally likely ones the first expert comes last."""
    layers, experts = due.shape
    most = places.shape[0]
    found = 0
    for distance in range(layers):
        layer = (first + distance) % layers
        begin = found
        for expert in range(experts):
            chance = due[layer, expert]
            place = layer * experts + expert
            if chance < least or absent[place] == 0:
                continue
            if found == most and (begin == most or chance <= due[layer, places[found - 1] - layer * experts]):
                continue
            i = min(found, most - 1)
            while i > begin and due[layer, places[i - 1] - layer * experts] < chance:
                places[i] = places[i - 1]
                i -= 1
            places[i] = place
            found = min(found + 1, most)
        if found == most:
            break
    for i in range(found // 2):
        places[i], places[found - 1 - i] = places[found - 1 - i], places[i]
    return found


@kernel
def blend_rows(ahead, stage1, coefficients, top_k, most_certain, touched):
    """See `engine.routing.touching.blend_rows_by_numpy`."""
    rows, distances, experts = ahead.shape
    told = stage1.shape[0] > 1
    by_row = np.empty(experts, np.float32)
    for d in range(distances):
        a, b, c = coefficients[d, 0], coefficients[d, 1], coefficients[d, 2]
        for e in range(experts):
            touched[d, e] = np.float32(1)
        for row in range(rows):
            before = stage1[row if told else 0, d]
            total = np.float32(0)
            for e in range(experts):
                by_row[e] = sigmoid(a * logit(before[e]) + b * logit(ahead[row, d, e]) + c)
                total += by_row[e]
            scale = top_k / total
            for e in range(experts):
                touched[d, e] *= np.float32(1) - min(by_row[e] * scale, most_certain)
        for e in range(experts):
            touched[d, e] = np.float32(1) - touched[d, e]
