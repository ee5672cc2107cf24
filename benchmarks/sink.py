"""A trace collector that takes everything and keeps nothing: what a gateway's spans are sent to while it is measured.

It answers every message with an empty OTLP reply; nothing is decoded.
"""

import sys

from benchmarks.serving import Connection, reply, serve

_TAKEN = reply(b"200 OK", b"", b"application/x-protobuf")


class Sender(Connection):
    def message(self, body: bytes) -> None:
        self.transport.write(_TAKEN)
        if not self.parser.should_keep_alive():
            self.transport.close()


if __name__ == "__main__":
    serve({int(sys.argv[1]): Sender})
