"""recbole_llm: RecBole recommenders that fuse collaborative signals with text and intent.

Importing it registers the models with RecBole and mends what current libraries broke in it.
Where RecBole is not installed, the algebra, encoders and signals work all the same.
"""

from __future__ import annotations

import importlib.util
import sys

__version__ = "0.1.0"

__all__ = ["__version__"]

if sys.modules.get("recbole", "absent") is not None and importlib.util.find_spec("recbole"):
    from recbole_llm.host.registration import register_models
    from recbole_llm.host.run import run as run

    register_models()
    __all__ += ["run"]
