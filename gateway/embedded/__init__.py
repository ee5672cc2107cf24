"""`pagegate up`: engines and the gateway on one machine. The only part of the gateway that knows `engine_config`."""
