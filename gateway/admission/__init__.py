"""Whether a call may run now: limits are reserved before the call and settled after it."""
