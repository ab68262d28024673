"""Which short samples share a row of the full length."""

import numpy as np

# Only samples that lie close together share a row, so that a row is read from one place.
SAMPLES_PER_WINDOW = 1 << 13


def pack(sizes: np.ndarray, limit: int) -> list[list[int]]:
    """Rows of samples by best-fit decreasing (Johnson 1974): each sample goes where it leaves the least room.

    Args:
        sizes: int64 [samples], tokens of each sample, each at least 1.
        limit: Tokens of a row, no less than the longest sample.

    Returns:
        For each row the indices of its samples; every sample is in one row.
    """
    rows: list[list[int]] = []
    # Rows by the room that is left in them, and as the bits of a number which rooms there are.
    by_room: list[list[list[int]]] = [[] for _ in range(limit + 1)]
    rooms = 0
    for sample in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[sample])
        if fitting := rooms >> size:
            room = size + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = limit, []
            rows.append(row)
        row.append(sample)
        by_room[room - size].append(row)
        rooms |= 1 << (room - size)
    return rows


def pack_shard(sizes: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of one shard, window by window.

    Returns:
        int32 [samples], the samples of all rows one after the other, and int32 [rows + 1] with the rows' bounds.
    """
    rows = [
        [start + sample for sample in row]
        for start in range(0, len(sizes), SAMPLES_PER_WINDOW)
        for row in pack(sizes[start : start + SAMPLES_PER_WINDOW], limit)
    ]
    bounds = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    return np.array([sample for row in rows for sample in row], dtype=np.int32), bounds
