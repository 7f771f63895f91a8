"""What a generation may ask of a bank, checked before any work."""

from __future__ import annotations

from lpkernel import checks
from lpkernel.backends.base import Array
from lpkernel.bank.bank import Bank
from lpkernel.errors import InputError
from lpkernel.plan import Plan

IMAGES = 2**32  # of a seed's series: image numbers are words of its random counter


def check_generation(bank: Bank, plan: Plan, n: int, k: int, first_image: int) -> None:
    """Raises InputError unless n, k and first_image are whole numbers in their ranges and the plan fits the bank."""
    if not isinstance(plan, Plan):
        raise InputError(f"plan: got {plan!r}, expected one of lpkernel.plan")
    check_images(n, first_image)
    if checks.integer("k", k) < 1:
        raise InputError(f"k: got {k}, expected at least 1 neighbour")
    if plan.sides[-1] != bank.grid:
        raise InputError(f"plan: ends at side {plan.sides[-1]}, expected the bank's grid side {bank.grid}")


def check_images(n: int, first_image: int) -> None:
    """Raises InputError unless images first_image to first_image + n - 1, at least one, are among a seed's 2^32."""
    if checks.integer("n", n) < 1:
        raise InputError(f"n: got {n}, expected at least 1 image")
    if n > IMAGES:
        raise InputError(f"n: got {n}, expected at most {IMAGES} images")
    if checks.integer("first_image", first_image) < 0 or first_image + n > IMAGES:
        raise InputError(f"first_image: got {first_image} with n = {n}, expected image numbers in [0, 2^32)")


def check_distances(bank: Bank, plan: Plan, canvas: Array | None = None) -> None:
    """Raises InputError unless distances fit int32: over max_patch^2 cells they do by the bank's limit, over more by
    the values that it holds.
    """
    most = plan.most_compared
    if most <= bank.max_patch**2:
        return
    start = None if canvas is None or bank.is_discrete else bank.project(canvas)
    if most * bank.largest_cell_distance(start, sum(scale.resize is not None for scale in plan.scales)) < 2**31:
        return
    if plan.patch > bank.max_patch:
        raise InputError(
            f"patch: got {plan.patch}, but this bank's fixed point is exact up to {bank.max_patch}; "
            f"rebuild it with max_patch={plan.patch}"
        )
    raise InputError(
        f"mirror: got {plan.mirror}: up to {most} cells are compared and distances may reach 2^31; lower it, or "
        "use a smaller patch"
    )
