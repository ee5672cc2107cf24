"""The shapes on the wire, both sides, without I/O: request fields that are read, events that are relayed."""
