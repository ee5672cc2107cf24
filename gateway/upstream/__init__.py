"""How an engine is reached: HTTP to one replica, and the walk along a ranking until one answers."""
