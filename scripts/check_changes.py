"""A distribution whose source changed since BASE needs a changelog fragment: `check_changes.py [BASE]` (`origin/main`).

Where there is no such revision (a fresh repository, a tarball) only the fragments' names are checked.
"""

import re
import subprocess
import sys
from pathlib import Path

DISTRIBUTIONS = ("shared-proto", "machineplane", "workplane")
FRAGMENT = re.compile(r"(\d+|\+[a-z0-9-]+)\.(feature|bugfix|doc|removal|misc)(\.\d+)?\.md")


def git(*arguments: str) -> list[str] | None:
    """The lines that git prints, or None where it fails."""
    done = subprocess.run(["git", *arguments], text=True, capture_output=True)
    return done.stdout.splitlines() if done.returncode == 0 else None


def main() -> int:
    base = sys.argv[1] if len(sys.argv) > 1 else "origin/main"
    changed = git("diff", "--name-only", f"{base}...HEAD")
    problems = []
    for name in DISTRIBUTIONS:
        fragments = [p for p in Path(name, "changes").iterdir() if p.name != ".gitignore"]
        problems += [
            f"{p}: name it NUMBER.(feature|bugfix|doc|removal|misc).md" for p in fragments if not good(p)
        ]
        touched = [path for path in changed or () if path.startswith(f"{name}/src/")]
        told = [
            path for path in changed or () if path.startswith((f"{name}/changes/", f"{name}/CHANGELOG.md"))
        ]
        if touched and not told:
            problems.append(f"{name}: source changed since {base}, and {name}/changes/ has no new fragment")
    print(
        "\n".join(problems)
        or f"changelog: fine{'' if changed is not None else f' (no {base} to compare with)'}"
    )
    return 1 if problems else 0


def good(fragment: Path) -> bool:
    return FRAGMENT.fullmatch(fragment.name) is not None


if __name__ == "__main__":
    sys.exit(main())
