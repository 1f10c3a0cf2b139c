"""`python -m edge_runtime COMMAND`: the `hedgerow` command of this very interpreter."""

import sys

from edge_runtime.cli import main

sys.exit(main())
