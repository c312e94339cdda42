"""The public MCP conformance suite, run against the gateway in both roles: `python -m tests.conformance`.

Knows the gateway by its command line and its endpoint only."""
