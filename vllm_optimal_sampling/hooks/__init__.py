"""The patches of vLLM: a registry, and one file for each process that they run in.

`registry.py` has what a patch is, `imports.py` puts the patches in as vLLM imports the modules they belong to. Each patch
is a few lines that call a named function or class of this package, which says what is done and how. Where vLLM has a slot
for a class there is no patch but a subclass: `engine_core/scheduler.py`, `worker/worker.py` and `worker/model_runner.py`.
"""
