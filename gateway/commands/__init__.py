"""The commands, one noun a file.

Know how to ask and how to print; nothing else of the gateway is decided here."""
