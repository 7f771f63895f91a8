"""Limits that several packages share. The compiled modules export theirs as LIMITS; tests compare them."""

from __future__ import annotations

INT16_CODES = 32768  # codebooks up to this size have int16 codes, which is what kernels compare
MOST_SIDE = 4096  # cells of a side that compiled kernels scan
