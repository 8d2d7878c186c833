"""Python programs in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def environment(**further: str) -> dict[str, str]:
    """This process's, with the project on the path."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "adapters"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **further}


def output_of(*arguments: str) -> Any:
    """What Python prints as JSON when it is called with these arguments."""
    done = subprocess.run([sys.executable, *arguments], env=environment(), check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)
