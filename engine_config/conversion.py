"""Writes a GGUF model as a Hugging Face folder: `python -m engine_config.conversion GGUF FOLDER PARENT`.

A process of its own, ended with its parent. What it converts and where that is kept is decided by `bundled`.
Lines that begin with `* ` are for the user; all else is transformers' own talk.
"""

import signal
import sys
from pathlib import Path

from engine_config.tether import die_with_parent, forbid_core_dumps


def main(arguments: list[str]) -> int:
    """Convert; returns the exit status."""
    gguf, folder, parent = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    die_with_parent(parent)
    forbid_core_dumps()
    # A Ctrl-C at the terminal reaches this process too: it ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    convert(gguf, folder)
    return 0


def convert(gguf: Path, folder: Path) -> None:
    """Weights as bfloat16 safetensors, configuration, tokenizer and chat template; some seconds and 2 GB."""
    print("* loading torch and transformers", flush=True)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("* reading the tokenizer", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)
    print("* reading the weights", flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        # Without it the quantized weights are kept, and saving them is refused.
        quantization_config=GgufConfig(dequantize=True),
    )
    print("* writing safetensors", flush=True)
    model.save_pretrained(folder)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
