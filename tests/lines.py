"""`make lines`: lines and files of each room, and an error above the ceiling, which only ever comes down.

12,000 lines of steerlib, explorer, workers and scorers included, in 70 files, and 8,500 lines of tests.
"""

import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = {"steerlib": (12_000, 70), "notebooks/extra/studies": (1_500, None), "tests": (8_500, None)}


def main() -> None:
    """Print the table; exit with the names of what is above its ceiling."""
    over = []
    for place, (most, most_files) in BUDGETS.items():
        lines = {file: len(file.read_text().splitlines()) for file in sorted((ROOT / place).rglob("*.py"))}
        for room, files in groupby(lines, key=lambda file: file.relative_to(ROOT / place).parts[0]):
            counts = [lines[file] for file in files]
            if place == "steerlib":
                print(f"  {room:<24} {sum(counts):6,} lines {len(counts):3} files")
        total, allowed = (
            sum(lines.values()),
            f"{most:,} lines" + (f", {most_files} files" if most_files else ""),
        )
        print(f"{place:<26} {total:6,} lines {len(lines):3} files, at most {allowed}")
        if total > most or (most_files and len(lines) > most_files):
            over.append(place)
    sys.exit(f"above the ceiling: {', '.join(over)}" if over else 0)


if __name__ == "__main__":
    main()
