"""What `pagegate up` says when everything is ready: where the gateway is, and two ways to call it.

Plain functions of what is to be said; the examples work when they are pasted.
"""

import json
import shlex
from collections.abc import Sequence

QUESTION = "What is the capital of France?"


def greeting(base_url: str, key: str, models: Sequence[str], chat_model: str | None, logs: str) -> str:
    """The text. `chat_model` is the model of the examples; without one there are none."""
    facts = [
        f"  Base URL  {base_url}",
        f"  Key       {key}",
        f"  Models    {', '.join(models)}",
        f"  Logs      {logs}",
    ]
    parts = ["\nPagegate is ready.\n", *facts]
    if chat_model is not None:
        parts += [
            "\nStream an answer:\n",
            curl_example(base_url, key, chat_model),
            "\nOr with the SDK (pip install openai):\n",
            sdk_example(base_url, key, chat_model),
        ]
    return "\n".join([*parts, "\nCtrl-C stops everything.\n"])


def curl_example(base_url: str, key: str, model: str) -> str:
    """One line for a POSIX shell that prints the events of a streamed answer."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
    headers = (f"Authorization: Bearer {key}", "Content-Type: application/json")
    words = ["curl", "-N", f"{base_url}/chat/completions"]
    for header in headers:
        words += ["-H", header]
    return shlex.join([*words, "-d", json.dumps(body)])


def sdk_example(base_url: str, key: str, model: str) -> str:
    """Four lines of Python that print the answer."""
    return "\n".join(
        (
            "from openai import OpenAI",
            f"client = OpenAI(base_url={json.dumps(base_url)}, api_key={json.dumps(key)})",
            f"reply = client.chat.completions.create(model={json.dumps(model)}, temperature=0, "
            f'messages=[{{"role": "user", "content": {json.dumps(QUESTION)}}}])',
            "print(reply.choices[0].message.content)",
        )
    )
