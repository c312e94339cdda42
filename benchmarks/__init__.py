"""Measurements: every figure the documentation quotes, each with its floor taken in the same run.

Knows the command line and the wire, like any user, and asks the gateway's code only where packages are installed."""
