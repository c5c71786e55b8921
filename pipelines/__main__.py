"""`python -m pipelines <job>`: the `imagebeam` command where its script is not on the PATH."""

import sys

from pipelines.cli import main

sys.exit(main())
