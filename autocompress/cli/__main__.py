"""`python -m autocompress.cli` is the command `autocompress`."""

import sys

from autocompress.cli.app import main

sys.exit(main())
