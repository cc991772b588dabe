"""The compiler half of the backend: it exists because Triton asks for one, and refuses to compile."""

from types import ModuleType
from typing import Any, NoReturn

from triton.backends.compiler import BaseBackend, GPUTarget

_REFUSAL = "the backend `cpu` runs kernels in Triton's interpreter and compiles nothing: set TRITON_INTERPRET=1"


class InterpreterBackend(BaseBackend):
    """Accepts the target `cpu`; whatever would compile for it is an error."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == "cpu"

    def hash(self) -> str:
        return "interpreter"

    def parse_options(self, options: dict[str, Any]) -> NoReturn:
        raise RuntimeError(_REFUSAL)

    def add_stages(self, stages: dict[str, Any], options: object, language: Any = None) -> NoReturn:
        raise RuntimeError(_REFUSAL)

    def load_dialects(self, context: Any) -> None:
        """The interpreter has no intermediate representation."""

    def get_module_map(self) -> dict[str, ModuleType]:
        return {}
