"""Build the bank that comes with the package: CC0 avatars encoded by the embedded autoencoder.

    python scripts/build_default_bank.py      # writes lpkernel/data/avatars.lpbank
    python scripts/build_default_bank.py --count 30000 --out out/avatars-30k.lpbank  # for benchmarks, ten minutes

The same autoencoder weights and the same versions of dicebear and resvg give the same file on one machine:
on another, a convolution's last bits may differ, and with them a few codes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import avatars
import numpy as np

import lpkernel as lp
from lpkernel.bank import DEFAULT_BANK

COUNT = 1200
LARGEST = 1_000_000  # bytes that the package may spend on it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_BANK)
    parser.add_argument("--count", type=int, default=COUNT)
    args = parser.parse_args()
    # float32 on the CPU: a bank's content should not depend on the machine that made it
    autoencoder = lp.load_autoencoder("default", device="cpu", dtype="float32")
    drawn = [avatars.draw(index, autoencoder.image_size) for index in range(args.count)]
    table = np.stack([attributes for _, attributes in drawn], axis=1)
    bank = lp.Bank.build(
        np.stack([image for image, _ in drawn]), autoencoder, attributes=dict(zip(avatars.NAMES, table, strict=True))
    )
    bank.colours = None  # more bytes than all the rest, and drawings have no two lights to be matched
    bank.names = [f"avatar-{index:06d}" for index in range(args.count)]
    bank.save(args.out)
    size = args.out.stat().st_size
    print(f"{bank}: {size} bytes, {bank.pca.explained_share:.1%} of the variance in {bank.channels} channels")
    if args.out == DEFAULT_BANK and size > LARGEST:
        print(f"build_default_bank.py: expected at most {LARGEST} bytes", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
