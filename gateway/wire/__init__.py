"""The wire: JSON-RPC envelopes, protocol eras and transports.

Knows how messages travel; not what they may do (the door) or who answers them (the pool)."""
