"""recbole_llm: RecBole recommenders that fuse collaborative signals with text and intent.

Importing it registers the models with RecBole and mends what current libraries broke in it.
Where RecBole is not installed, the algebra, encoders and signals work all the same.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

__version__ = "0.1.0"

__all__ = ["__version__"]

if sys.modules.get("recbole", "absent") is not None and importlib.util.find_spec("recbole"):
    try:
        from recbole_llm.host.registration import register_models
        from recbole_llm.host.run import run as run

        register_models()
    except KeyboardInterrupt:
        # The imports take seconds, and the commands' own guard stands behind them.
        if Path(sys.argv[0]).stem not in ("run_recbole", "recbole-llm"):
            raise
        print("stopped by Ctrl-C while loading", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    __all__ += ["run"]
