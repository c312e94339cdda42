"""The server of probe.py, which does not start with a bad credential."""

import os
import sys

import probe

if os.environ.get("HOLDER_KEY") == "bad":
    sys.exit("this credential is bad")
probe.main()
