"""Engine specs: what a vLLM worker is started with, checked and planned before anything starts.

The path of a spec: a profile is read (`catalog`), held to its rules (`rules`), sized (`plan`), turned into
arguments (`render`, `helm`) and run (`worker`). Only `worker` imports vLLM, and only when it serves.
"""
