"""`python -m bazaruto.control.retention`: how the role of that name asks for it."""

import os
import sys

from bazaruto.control.retention import retain

sys.exit(retain.main(sys.stdin.read(), os.environ))
