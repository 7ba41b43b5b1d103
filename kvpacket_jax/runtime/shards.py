"""i/n: the i-th of n parts of some work, for independent processes."""

import re


def parse(text: str) -> tuple[int, int]:
    """ "2/8" is the third of eight: (2, 8). ValueError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    shard = (int(match[1]), int(match[2])) if match else (0, 0)
    if shard[0] >= shard[1]:
        raise ValueError(
            f"--shard={text} is not i/n with i from 0 to n - 1: 0/4, 1/4, 2/4 and 3/4 make a whole."
        )
    return shard
