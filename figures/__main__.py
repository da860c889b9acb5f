"""Draw every figure from the committed result files, in one process.

python figures [NAME ...]
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the scripts that draw something; the other modules help them."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem != "__main__" and "\ndef main(" in path.read_text())


def main() -> None:
    for name in sys.argv[1:] or names():
        if name not in names():
            sys.exit(f"there is no figure {name!r}: there are {', '.join(names())}")
        print(f"figures/{name}.py", flush=True)
        runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
