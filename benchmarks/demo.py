"""The whole way on generated heads: dataset, group, participant, score.

Usage: ``python -m benchmarks.demo [FOLDER] [--steps N]``. A finished stage is not repeated.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import mosaic, score
from benchmarks.phantoms import write_dataset
from singlestrip_bids import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return 0 if every head was masked and scored."""
    parser = argparse.ArgumentParser(description="Label one generated head, mask the others.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"))
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--steps", default="260", help="of the first training")
    args = parser.parse_args(argv)
    began = time.monotonic()
    bids_dir, out = args.folder / "bids", args.folder / "singlestrip"
    if not bids_dir.exists():
        print(f"Generating {args.subjects} heads in {bids_dir} ...", flush=True)
        write_dataset(bids_dir, subjects=args.subjects)
    call = [str(bids_dir), str(out), "group", "participant", "--preset", "quick"]
    call += ["--steps", args.steps]
    print(f"singlestrip-bids {' '.join(call)}", flush=True)
    code = cli.main(call)
    if code:
        return code
    truth = args.folder / "bids-truth"
    rows = score.score(out, truth)
    print(f"\n{score.table(rows)}\n")
    picture = args.folder / "masks.png"
    mosaic.draw(bids_dir, out, picture, truth)
    print(f"Dataset, one scan labelled : {bids_dir}")
    print(f"Masks with their sidecars  : {out}")
    print(f"Model, curves and scores   : {out / 'code' / 'singlestrip'}")
    print(f"True masks                 : {truth}")
    print(f"Picture (red: mask, green: truth): {picture}")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    return int(any(row.error for row in rows))


if __name__ == "__main__":
    sys.exit(main())
