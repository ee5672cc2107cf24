"""Fetches a hub model's safe files into the hub's own cache, and prints the folder.

A process of its own, because vLLM's process is told to be offline before its first import.
`python -m engine_config.hub REPOSITORY [REVISION]`.
"""

from __future__ import annotations

import subprocess
import sys

from engine_config.model_files import BadModel
from engine_config.tether import die_with_parent

# Weights as safetensors, and the texts that describe them: a pickle is not even downloaded.
SAFE_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken")


def fetch(repository: str, revision: str | None) -> str:
    """Folder of the repository's files at that revision; downloads what is missing.

    Raises:
        BadModel: The hub could not be reached, or does not have it.
    """
    command = [sys.executable, "-m", "engine_config.hub", repository, *([revision] if revision else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    folder = done.stdout.strip()
    if done.returncode or not folder:
        raise BadModel(f"{repository} could not be fetched (see above). Give a folder as model.source")
    return folder


def main(arguments: list[str]) -> int:
    """Fetch, and print the folder as the last line of stdout."""
    die_with_parent()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, revision = arguments[0], arguments[1] if len(arguments) > 1 else None
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=list(SAFE_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
