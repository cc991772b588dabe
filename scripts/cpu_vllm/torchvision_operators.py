"""Let an installed torchvision be imported although its compiled operators do not load, as those of a CUDA build without CUDA.

vLLM's multimodal models import torchvision for what it has in Python: it resizes images with torch. Its import stops at the
two operators that it describes unasked. They are declared here, without code of their own: whoever calls one gets an error.
"""

from importlib.util import find_spec
from pathlib import Path

DECLARATION = """
if not _has_ops():  # by scripts/cpu_vllm/torchvision_operators.py
    from torch import library as _library
    for _name in ("nms", "qnms"):
        _library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

spec = find_spec("torchvision")
assert spec is not None and spec.origin is not None, "torchvision is not installed"
extension = Path(spec.origin).parent / "extension.py"
if DECLARATION not in (source := extension.read_text()):
    extension.write_text(source + DECLARATION)
