"""The compute process: `python -m gennode.engine.child FOLDER DEVICE`, its node at stdin."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gennode.engine.child.jail import confine_files, prefer_to_end_this


def main() -> None:
    """Enter the jail as early as can be, and serve until the node is gone."""
    folder, device = Path(sys.argv[1]), sys.argv[2]
    prefer_to_end_this()
    # Libraries look for compilers, and for a folder for what is compiled. No program can be
    # started inside and no file made, and those that find neither do without.
    os.environ |= {"PATH": "", "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    # Landlock binds later threads alone, so it comes before the libraries that start some. An
    # accelerator's driver wants more of the system while it starts, and is started before.
    landlock = confine_files(folder, device) if device == "cpu" else None

    from gennode.engine.child.serve import serve

    serve(folder, device, landlock)


if __name__ == "__main__":
    main()
