"""What more than one backend says of a request that it does not take."""

from __future__ import annotations

from lpkernel.limits import INT16_CODES


def too_many_codes(codes: int) -> str:
    return f"compares up to {INT16_CODES} codes by table, got {codes}"


def too_many_neighbours(k: int, most: int) -> str:
    return f"finds up to {most} neighbours, got k = {k}"


def too_wide_a_patch(patch: int, most: int) -> str:
    """Of a plan with boundaries."""
    return f"cuts patches of up to {most} cells, got {patch}"
