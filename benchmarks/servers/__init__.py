"""Echo servers to measure against, each run as a program of its own.

They know nothing of the gateway."""
