"""The project's own benchmark: what a gateway costs, what it adds, and what it withstands; `make bench`.

Not part of the package that is installed. docs/benchmarks.md says how to run it and what not to conclude.
"""
