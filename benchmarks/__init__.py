"""Measurements: every figure the documentation quotes, each with its floor taken in the same run.

Knows the command line and the wire, like any user; never the gateway's insides."""
