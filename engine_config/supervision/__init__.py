"""Workers on this machine: placed on its GPUs, started, watched, restarted, and ended with whoever started them."""
