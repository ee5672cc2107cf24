"""From the engine's answer to the caller's reply: bytes through, usage learnt, failures made visible."""
