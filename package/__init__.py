"""`import earlybert` makes the narrow BERT known to the Auto classes of transformers, as soon as these are imported.

Nothing heavy is imported here: neither torch nor transformers.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

CONFIGURATION = "transformers.models.auto.configuration_auto"
MODELS = "transformers.models.auto.modeling_auto"


def register() -> None:
    """Once both modules are there."""
    from earlybert.pretrain.network.exported import modeling_earlybert

    modeling_earlybert.register()


def bring_models() -> None:
    """They are registered when they are there; what imports them already has only asked for the configuration first."""
    if MODELS not in sys.modules:
        importlib.import_module(MODELS)


THEN: dict[str, Callable[[], None]] = {CONFIGURATION: bring_models, MODELS: register}


class Registration(MetaPathFinder):
    """Finds the two modules with the Auto classes as Python does, and has something done once one is there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in THEN else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_then(module: ModuleType) -> None:
            execute(module)
            THEN[name]()

        spec.loader.exec_module = execute_and_then  # type: ignore[method-assign]
        return spec


if CONFIGURATION in sys.modules:
    bring_models()
if MODELS in sys.modules:
    register()
sys.meta_path.insert(0, Registration())
