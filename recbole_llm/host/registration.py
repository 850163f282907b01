"""How RecBole finds our models: by name, as modules and attributes of its own packages."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from recbole_llm.host import quirks

quirks.quiet_host_warnings()

import recbole.data.dataset  # noqa: E402  # after the filters: ray warns at import
import recbole.trainer  # noqa: E402
from recbole.utils import ModelType  # noqa: E402

from recbole_llm.host.cold_evaluation import register_metrics  # noqa: E402
from recbole_llm.host.dataset import SequencesDataset, TablesDataset, TowersDataset  # noqa: E402
from recbole_llm.host.trainer import TablesTrainer, TowerTrainer  # noqa: E402
from recbole_llm.models import MODELS  # noqa: E402

# Type of a model -> its data set, and its trainer; None: RecBole's own.
_PARTS = {
    ModelType.TRADITIONAL: (TablesDataset, TablesTrainer),
    ModelType.SEQUENTIAL: (SequencesDataset, None),
    ModelType.GENERAL: (TowersDataset, TowerTrainer),
}


def register_models() -> None:
    """Make every model of :data:`recbole_llm.models.MODELS` known; a second call changes nothing.

    RecBole's ``get_model`` looks for a module of the lower-case name in its packages,
    ``get_trainer`` for ``<Model>Trainer``, ``create_dataset`` for ``<Model>Dataset``.
    """
    quirks.apply()
    register_metrics()
    for name, model in MODELS.items():
        is_sequential = model.type == ModelType.SEQUENTIAL
        kind = "sequential" if is_sequential else "general"
        path = f"recbole.model.{kind}_recommender.{name.lower()}"
        module = ModuleType(path, model.__doc__)
        setattr(module, name, model)
        # find_spec refuses a module in sys.modules that has none.
        module.__spec__ = ModuleSpec(path, loader=None)
        sys.modules[path] = module
        dataset, trainer = _PARTS[model.type]
        setattr(recbole.data.dataset, f"{name}Dataset", dataset)
        if trainer is not None:
            setattr(recbole.trainer, f"{name}Trainer", trainer)
