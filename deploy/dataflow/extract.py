"""What Dataflow's template launcher starts in the worker image: `imagebeam extract`, its flags given as parameters."""

import sys

from pipelines.cli import run_job
from pipelines.flex_template import arguments

if __name__ == "__main__":
    sys.exit(run_job("extract", arguments(sys.argv[1:])))
