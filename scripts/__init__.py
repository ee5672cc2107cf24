"""Set-up of a checkout: `install` makes the virtual environment, `lock` and `notices` regenerate files.

`install` runs on a bare Python, so it and what it imports use the standard library alone.
"""
