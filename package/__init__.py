"""`import earlybert` makes the narrow BERT known to the Auto classes of transformers, before they load anything.

Nothing heavy is imported here, neither torch nor transformers. When transformers is used, the first configuration that
`AutoConfig` loads is what registers ours. (All Auto classes, pipelines and tokenizers begin with a configuration. On
import would be too early: BERT, which ours derives from, may be what is importing the Auto classes just then.)
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

AUTO = "transformers.models.auto.configuration_auto"


def register_when_used(auto: ModuleType) -> None:
    """`AutoConfig.from_pretrained` registers the narrow BERT when it is called, and then is itself again."""
    original = vars(auto.AutoConfig)["from_pretrained"]

    def from_pretrained(cls: Any, *arguments: Any, **options: Any) -> Any:
        auto.AutoConfig.from_pretrained = original
        from earlybert.pretrain.network.exported import modeling_earlybert

        modeling_earlybert.register()
        return cls.from_pretrained(*arguments, **options)

    auto.AutoConfig.from_pretrained = classmethod(from_pretrained)


class Listener(MetaPathFinder):
    """Finds the module with AutoConfig as Python does, and has it changed once it is there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == AUTO else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            register_when_used(module)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


if AUTO in sys.modules:
    register_when_used(sys.modules[AUTO])
else:
    sys.meta_path.insert(0, Listener())
